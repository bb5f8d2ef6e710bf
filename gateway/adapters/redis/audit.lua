-- The audit of a tenant: an outbox, and the chain that it is written into (APPR-11).
-- KEYS: one key of the tenant, for routing. ARGV: operation, prefix, then its own.
--
-- audit:new          STREAM  what happened, put there by the script that did it (approvals.lua) or
--                            by `note`: e event · i approval, batch or note · sealed and plain facts
-- audit              STREAM  the chain, `<sequence>-0`: c sealed entry · t when (ms)
-- audit:head         HASH    n last sequence · v mark of the last append · c sealed hash of n
--                            · b sealed base · bn its sequence · k last checkpoint · kt when (ms)
-- audit:checkpoints  STREAM  `<sequence>-0`: c sealed checkpoint
-- audit:of:<id>      ZSET    the entries about an approval or a batch
-- audit:once         HASH    what was noted last of the things that are noted when they change
-- audit:noted:<id>   STRING  the note is in the outbox, so that a repeat adds none
local prefix = ARGV[2]
local new, chain, head = prefix .. 'audit:new', prefix .. 'audit', prefix .. 'audit:head'
local checkpoints = prefix .. 'audit:checkpoints'

local function int(n) return string.format('%.0f', n) end
local function id(sequence) return int(sequence) .. '-0' end
local function number(stream_id) return tonumber(string.match(stream_id, '^%d+')) end

local function millis()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- The first or last id of a stream, or false.
local function edge(key, command, from, to)
  local found = redis.call(command, key, from, to, 'COUNT', 1)
  return found[1] and found[1][1] or false
end

local op = {}

-- event, note, sealed, what it is once for or '', keyed names of its state (the first is stored)
function op.note()
  local mark = prefix .. 'audit:noted:' .. ARGV[4]
  if redis.call('EXISTS', mark) == 1 then return 1 end
  if ARGV[6] ~= '' then
    local last = redis.call('HGET', prefix .. 'audit:once', ARGV[6])
    for n = 7, #ARGV do
      if ARGV[n] == last then return 0 end
    end
  end
  redis.call('XADD', new, '*', 'e', ARGV[3], 'i', ARGV[4], 'n', ARGV[5])
  redis.call('SET', mark, 1, 'PX', 60000)
  if ARGV[6] ~= '' then redis.call('HSET', prefix .. 'audit:once', ARGV[6], ARGV[7]) end
  return 1
end

-- how many. Returns the head, and what waits with the records that it is about.
function op.take()
  local found = redis.call('XRANGE', new, '-', '+', 'COUNT', ARGV[3])
  local waiting = {}
  for n, entry in ipairs(found) do
    local fields = {}
    for m = 1, #entry[2], 2 do fields[entry[2][m]] = entry[2][m + 1] end
    local record = {}
    if string.sub(fields.e, 1, 13) == 'continuation.' then
      record = redis.call('HMGET', prefix .. 'batch:' .. fields.i, 't', 'ids')
    elseif not fields.n then
      record = redis.call('HMGET', prefix .. 'apr:' .. fields.i, 'c')
    end
    waiting[n] = {entry[1], entry[2], record}
  end
  return {redis.call('HMGET', head, 'n', 'v', 'c'), waiting}
end

-- expected mark or '', new mark, last sequence, sealed hash, how long to keep indexes (ms), then
-- for each entry: outbox id, sequence, when, subject or '', sealed.
-- Refused with 0 when another replica was faster, with -1 when the head is not the last entry's;
-- then nothing is written.
function op.append()
  local mark = redis.call('HGET', head, 'v') or ''
  if mark == ARGV[4] then return 1 end
  if mark ~= ARGV[3] then return 0 end
  local last = edge(chain, 'XREVRANGE', '+', '-')
  if last and number(last) ~= ARGV[9] - 1 then return -1 end
  for n = 8, #ARGV, 5 do
    if #redis.call('XRANGE', new, ARGV[n], ARGV[n]) == 0 then return 0 end
  end
  for n = 8, #ARGV, 5 do
    redis.call('XADD', chain, ARGV[n + 1] .. '-0', 'c', ARGV[n + 4], 't', ARGV[n + 2])
    if ARGV[n + 3] ~= '' then
      local index = prefix .. 'audit:of:' .. ARGV[n + 3]
      redis.call('ZADD', index, ARGV[n + 1], ARGV[n + 1])
      redis.call('PEXPIRE', index, ARGV[7])
    end
    redis.call('XDEL', new, ARGV[n])
  end
  redis.call('HSET', head, 'n', ARGV[5], 'v', ARGV[4], 'c', ARGV[6])
  return 1
end

-- Everything that is known of the chain beside its entries.
function op.state()
  local h = redis.call('HMGET', head, 'n', 'c', 'bn', 'b', 'k', 'kt')
  local last = redis.call('XREVRANGE', checkpoints, '+', '-', 'COUNT', 1)[1] or false
  return {int(millis()), h, edge(new, 'XRANGE', '-', '+'), edge(chain, 'XREVRANGE', '+', '-'), last}
end

-- sequence, sealed checkpoint. Refused when there is one of that entry or a later one.
function op.checkpoint()
  local last = tonumber(redis.call('HGET', head, 'k') or 0)
  if tonumber(ARGV[3]) <= last then return 0 end
  redis.call('XADD', checkpoints, ARGV[3] .. '-0', 'c', ARGV[4])
  redis.call('HSET', head, 'k', ARGV[3], 'kt', int(millis()))
  return 1
end

-- when (ms). Returns the sequence of the first entry that is not older: time only grows.
function op.since()
  local first, last = edge(chain, 'XRANGE', '-', '+'), edge(chain, 'XREVRANGE', '+', '-')
  if not first then return 1 end
  local low, high, wanted = number(first), number(last) + 1, tonumber(ARGV[3])
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', chain, id(middle), '+', 'COUNT', 1)[1]
    if entry and tonumber(entry[2][4]) < wanted then low = number(entry[1]) + 1 else high = middle end
  end
  return low
end

-- sequence of the last entry to drop, sealed base, expected base sequence or ''
function op.prune()
  if (redis.call('HGET', head, 'bn') or '') ~= ARGV[5] then return 0 end
  redis.call('HSET', head, 'bn', ARGV[3], 'b', ARGV[4])
  redis.call('XTRIM', chain, 'MINID', '=', id(ARGV[3] + 1))
  redis.call('XTRIM', checkpoints, 'MINID', '=', id(ARGV[3] + 1))
  return 1
end

-- which stream, command, from, to, how many
function op.read() return redis.call(ARGV[4], prefix .. ARGV[3], ARGV[5], ARGV[6], 'COUNT', ARGV[7]) end

-- ids. Returns the sealed entries about any of them, in order.
function op.of()
  local sequences, seen = {}, {}
  for n = 3, #ARGV do
    for _, sequence in ipairs(redis.call('ZRANGE', prefix .. 'audit:of:' .. ARGV[n], 0, -1)) do
      if not seen[sequence] then sequences[#sequences + 1] = tonumber(sequence) end
      seen[sequence] = true
    end
  end
  table.sort(sequences)
  local found = {}
  for _, sequence in ipairs(sequences) do
    found[#found + 1] = redis.call('XRANGE', chain, id(sequence), id(sequence))[1]
  end
  return found
end

return op[ARGV[1]]()
