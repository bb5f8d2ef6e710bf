-- Approvals and batches: every transition is one call of this script (APPR-5, APPR-6).
-- KEYS: one key of the tenant, for routing. ARGV: operation, prefix, tenant, then its own.
--
-- Time is the server's alone. An operation that is repeated after a lost connection finds its own
-- mark (a vote's token, a call's nonce) and answers the same again. Keys found inside carry the
-- hash tag of the declared one (see keys.py).
--
-- Approval hash: c sealed core · s status · b batch · t turn · f token of the fingerprint · q quorum
--   n approvals so far · v version · x on_timeout · by · ca/ea/da created, expires, decided (ms)
--   d what decided ('timeout', a vote's token) · vo tokens in order · v:<token> verdict and
--   sealed vote · note sealed reason of a cancellation
-- Batch hash: s status · t turn · o open · f fence · l lease until (ms) · ids · h held · nx next
--   response · j continues by a job (0, 1) · cn/dn/an nonce of claim, dispatch, abandon

local prefix, tenant = ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)
local DAY = 86400000
local JOBS_TTL = 35 * DAY

local function int(n) return string.format('%.0f', n) end
local function apr(id) return prefix .. 'apr:' .. id end
local function batch_key(id) return prefix .. 'batch:' .. id end

-- A key that several records share lives as long as the longest of them.
local function keep(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, int(ttl)) end
end

local function publish(text) redis.call('PUBLISH', 'gw:wake', text) end

local function touched(turn) publish('turn:' .. tenant .. ':' .. turn) end

local function job(...)
  redis.call('XADD', prefix .. 'jobs', '*', 'o', string.format('%.3f', now / 1000), ...)
  keep(prefix .. 'jobs', JOBS_TTL)
  publish('jobs:' .. tenant)
end

local function webhook(id, event)
  -- The event's id is the same however often it is delivered.
  job('k', 'webhook', 's', id, 'e', 'approval.' .. event, 'i', 'evt_' .. id .. '_' .. event)
end

-- Every transition leaves an entry for the audit, in the same script, so that neither is on record
-- without the other (APPR-11); it is chained later, by whichever replica comes first. A full server refuses a script at its first write that
-- needs memory: so this comes first, but after a ZREM where time alone has decided.
-- `id` is an approval's or a batch's; what else matters is read from its record by the chainer.
-- Fields: s status · by what decided · f fence · u the upstream's id of the request · nx its response
-- · vote, note: sealed as in the record · detail: sealed by `seal_detail` (audit.py), who and why.
local function audit(event, id, ...)
  redis.call('XADD', prefix .. 'audit:new', '*', 'e', event, 'i', id, ...)
end

-- Records end by their TTL, index entries do not: drop some whose record is gone.
local function prune(index)
  for _, id in ipairs(redis.call('ZRANGE', index, 0, 7)) do
    if redis.call('EXISTS', apr(id)) == 0 then redis.call('ZREM', index, id) end
  end
end

local function file(id, status, score, ttl)
  local index = prefix .. 'aprs:status:' .. status
  redis.call('ZADD', index, score, id)
  keep(index, ttl)
  prune(index)
end

local function set_ready(id, key)
  redis.call('HSET', key, 's', 'ready')
  if redis.call('HGET', key, 'j') == '1' then job('k', 'continue', 's', id) end
end

-- Give a pending approval its final status; the last of a batch makes the batch ready.
-- What follows `decided` goes into the audit: the sealed vote or note that decided.
local function resolve(id, status, decided, ...)
  local key = apr(id)
  local a = redis.call('HMGET', key, 'b', 't', 'by')
  redis.call('ZREM', prefix .. 'deadlines', id)
  redis.call('ZREM', prefix .. 'aprs:status:pending', id)
  audit('approval.resolved', id, 's', status, 'by', decided, ...)
  local score = redis.call('ZSCORE', prefix .. 'aprs', id)
  if score then file(id, status, score, redis.call('PTTL', key)) end
  redis.call('HSET', key, 's', status, 'd', decided, 'da', int(now))
  redis.call('HINCRBY', key, 'v', 1)
  if a[3] == 'approver' then webhook(id, 'resolved') end
  local bkey = batch_key(a[1])
  if redis.call('HGET', bkey, 's') == 'waiting'
    and redis.call('HINCRBY', bkey, 'o', -1) == 0 then
    set_ready(a[1], bkey)
  end
  touched(a[2])
end

-- Expire an approval whose time is over: on every touch, so that a late sweeper changes nothing.
-- A held one stays open as long as its record lives; `rewind` is answered like `deny`.
local function lapse(id)
  local a = redis.call('HMGET', apr(id), 's', 'ea', 'x')
  if a[1] ~= 'pending' or a[3] == 'hold' or now < tonumber(a[2]) then return false end
  resolve(id, 'expired', 'timeout')
  return true
end

local function show(id)
  local a = redis.call('HGETALL', apr(id))
  if #a == 0 then return false end
  return {id, a}
end

local function members(key)
  local ids = {}
  for id in string.gmatch(redis.call('HGET', key, 'ids') or '', '%S+') do ids[#ids + 1] = id end
  return ids
end

local function show_batch(key)
  local shown = {}
  for _, id in ipairs(members(key)) do shown[#shown + 1] = show(id) or nil end
  return {redis.call('HGETALL', key), shown}
end

local function lapse_all(key)
  if redis.call('HGET', key, 's') ~= 'waiting' then return end
  for _, id in ipairs(members(key)) do lapse(id) end
end

local function lease(id, key, ms)
  redis.call('HSET', key, 'l', int(now + ms))
  redis.call('ZADD', prefix .. 'leases', int(now + ms), id)
  keep(prefix .. 'leases', redis.call('PTTL', key))
end

local function doubt(id, key)
  redis.call('ZREM', prefix .. 'leases', id)
  audit('continuation.indeterminate', id, 'f', redis.call('HGET', key, 'f'))
  redis.call('HSET', key, 's', 'indeterminate')
  touched(redis.call('HGET', key, 't'))
end

local op = {}

-- id, turn, ttl, held, claim lease or '', then 10 values for each approval.
function op.open()
  local id, turn, ttl = ARGV[4], ARGV[5], tonumber(ARGV[6])
  local held, claim = ARGV[7], tonumber(ARGV[8])
  local key = batch_key(id)
  if redis.call('EXISTS', key) == 1 then
    lapse_all(key)
    return show_batch(key)
  end
  local last = redis.call('ZRANGE', prefix .. 'aprs', -1, -1, 'WITHSCORES')
  local seq = math.max(micros, (tonumber(last[2]) or 0) + 1)
  local ids, open, by_job = {}, 0, '1'
  local turn_index = prefix .. 'aprs:turn:' .. turn
  for n = 9, #ARGV, 10 do
    local a, status, by = ARGV[n], ARGV[n + 2], ARGV[n + 6]
    ids[#ids + 1] = a
    if status == 'pending' then
      audit('approval.requested', a)
    else
      audit('approval.resolved', a, 's', status, 'by', ARGV[n + 9])
    end
    redis.call('HSET', apr(a), 'c', ARGV[n + 1], 's', status, 'b', id, 't', turn,
      'f', ARGV[n + 3], 'q', ARGV[n + 4], 'n', 0, 'v', 1, 'x', ARGV[n + 5], 'by', by,
      'ca', int(now), 'ea', int(now + ARGV[n + 7]))
    redis.call('PEXPIRE', apr(a), int(ttl))
    redis.call('SET', prefix .. 'mcpr:' .. ARGV[n + 8], a, 'PX', int(ttl))
    redis.call('ZADD', prefix .. 'aprs', int(seq), a)
    redis.call('ZADD', turn_index, int(seq), a)
    file(a, status, int(seq), ttl)
    seq = seq + 1
    if by == 'caller' then by_job = '0' end
    if status == 'pending' then
      open = open + 1
      if ARGV[n + 5] ~= 'hold' then
        redis.call('ZADD', prefix .. 'deadlines', int(now + ARGV[n + 7]), a)
      end
      if by == 'approver' then webhook(a, 'requested') end
    else
      redis.call('HSET', apr(a), 'da', int(now), 'd', ARGV[n + 9])
      if by == 'approver' then webhook(a, 'resolved') end
    end
  end
  redis.call('HSET', key, 's', 'waiting', 't', turn, 'o', open, 'f', 0, 'l', 0, 'h', held,
    'ids', table.concat(ids, ' '), 'j', by_job)
  redis.call('PEXPIRE', key, int(ttl))
  keep(prefix .. 'aprs', ttl)
  keep(turn_index, ttl)
  keep(prefix .. 'deadlines', ttl)
  prune(prefix .. 'aprs')
  if open == 0 then
    if claim then
      -- The caller goes on by itself; if it dies, whoever asks for the batch may claim it.
      audit('continuation.claimed', id, 'f', 1)
      redis.call('HSET', key, 's', 'claimed', 'f', 1, 'j', '0')
      lease(id, key, claim)
    else
      set_ready(id, key)
    end
  end
  touched(turn)
  return show_batch(key)
end

function op.get()
  local id = ARGV[4]
  lapse(id)
  return show(id)
end

function op.by_request()
  local found = {}
  for n = 4, #ARGV do
    local id = redis.call('GET', prefix .. 'mcpr:' .. ARGV[n])
    if id then lapse(id) end
    found[n - 3] = id and show(id) or false
  end
  return found
end

-- Expire what is due, and settle leases that lapsed: at most `most` of each.
local function sweep(most)
  local done = {}
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'deadlines', '-inf', int(now), 'LIMIT', 0, most)
  for _, id in ipairs(due) do
    if lapse(id) then done[#done + 1] = id else redis.call('ZREM', prefix .. 'deadlines', id) end
  end
  local late = redis.call('ZRANGEBYSCORE', prefix .. 'leases', '-inf', int(now), 'LIMIT', 0, most)
  for _, id in ipairs(late) do
    local key = batch_key(id)
    local b = redis.call('HMGET', key, 's', 'j')
    if b[1] == 'dispatched' then
      doubt(id, key)
    else
      redis.call('ZREM', prefix .. 'leases', id)
      -- Its worker is gone before it sent anything; its job may be gone as well.
      if b[1] == 'claimed' and b[2] == '1' then
        audit('continuation.released', id, 'f', redis.call('HGET', key, 'f'))
        set_ready(id, key)
      end
    end
  end
  return {done, #due == most or #late == most}
end

function op.sweep() return sweep(tonumber(ARGV[4])) end

-- index, id to begin after or '', score to go on below or '', how many.
-- Returns a page, and the score of its end when there may be more.
function op.list()
  sweep(100)
  local index, top, most = prefix .. ARGV[4], '+inf', tonumber(ARGV[7])
  if ARGV[6] ~= '' then
    top = '(' .. ARGV[6]
  elseif ARGV[5] ~= '' then
    local score = redis.call('ZSCORE', prefix .. 'aprs', ARGV[5])
    if not score then return {{}, false} end
    top = '(' .. score
  end
  local found = redis.call('ZREVRANGEBYSCORE', index, top, '-inf', 'WITHSCORES', 'LIMIT', 0, most)
  local page = {}
  for n = 1, #found, 2 do
    lapse(found[n])
    local a = show(found[n])
    if a then page[#page + 1] = a else redis.call('ZREM', index, found[n]) end
  end
  return {page, #found == most * 2 and found[#found] or false}
end

-- id, verdict, sealed vote, version or '', number of keys, fingerprint tokens, actor tokens.
function op.vote()
  local id, verdict, version, count = ARGV[4], ARGV[5], ARGV[7], tonumber(ARGV[8])
  local key = apr(id)
  lapse(id)
  local a = redis.call('HMGET', key, 's', 'f', 'v', 'q', 't', 'x', 'ea')
  if not a[1] then return {'not_found', false} end
  local same, mine = false, false
  for n = 9, 8 + count do
    same = same or ARGV[n] == a[2]
    mine = mine or redis.call('HGET', key, 'v:' .. ARGV[n + count])
  end
  if not same then return {'fingerprint_mismatch', show(id)} end
  if mine then
    local before = string.match(mine, '^%a+')
    return {before == verdict and '' or 'vote_conflict', show(id)}
  end
  if a[1] == 'expired' then return {'expired', show(id)} end
  if a[1] ~= 'pending' then return {'already_decided', show(id)} end
  if version ~= '' and version ~= a[3] then return {'version_mismatch', show(id)} end
  local token = ARGV[9 + count]
  audit('approval.voted', id, 's', verdict, 'by', token, 'vote', ARGV[6])
  local order = redis.call('HGET', key, 'vo')
  redis.call('HSET', key, 'v:' .. token, verdict .. ':' .. ARGV[6],
    'vo', order and order .. ' ' .. token or token)
  if verdict == 'deny' then
    resolve(id, 'denied', token, 'vote', ARGV[6])
  elseif redis.call('HINCRBY', key, 'n', 1) >= tonumber(a[4]) then
    resolve(id, 'approved', token, 'vote', ARGV[6])
  else
    redis.call('HINCRBY', key, 'v', 1)
    touched(a[5])
  end
  return {'', show(id)}
end

function op.batch()
  local key = batch_key(ARGV[4])
  if redis.call('EXISTS', key) == 0 then return false end
  lapse_all(key)
  return show_batch(key)
end

-- id, lease, nonce
function op.claim()
  local id, ms, nonce = ARGV[4], tonumber(ARGV[5]), ARGV[6]
  local key = batch_key(id)
  lapse_all(key)
  local b = redis.call('HMGET', key, 's', 'l', 'cn')
  local lapsed = b[2] and now >= tonumber(b[2])
  if b[1] == 'claimed' and b[3] == nonce then return show_batch(key) end
  if b[1] == 'dispatched' and lapsed then doubt(id, key) end
  if b[1] ~= 'ready' and not (b[1] == 'claimed' and lapsed) then return false end
  local fence = redis.call('HGET', key, 'f') + 1
  audit('continuation.claimed', id, 'f', int(fence))
  redis.call('HSET', key, 's', 'claimed', 'cn', nonce, 'f', int(fence))
  lease(id, key, ms)
  return show_batch(key)
end

-- id, fence, lease
function op.renew()
  local key = batch_key(ARGV[4])
  local b = redis.call('HMGET', key, 's', 'f')
  if b[2] ~= ARGV[5] or (b[1] ~= 'claimed' and b[1] ~= 'dispatched') then return 0 end
  lease(ARGV[4], key, tonumber(ARGV[6]))
  return 1
end

-- id, fence, nonce. Refused after the lease: somebody else may be about to claim.
function op.dispatch()
  local key = batch_key(ARGV[4])
  local b = redis.call('HMGET', key, 's', 'f', 'l', 'dn')
  if b[2] ~= ARGV[5] then return 0 end
  if b[1] == 'dispatched' then return b[4] == ARGV[6] and 1 or 0 end
  if b[1] ~= 'claimed' or now >= tonumber(b[3]) then return 0 end
  audit('continuation.dispatched', ARGV[4], 'f', b[2])
  redis.call('HSET', key, 's', 'dispatched', 'dn', ARGV[6])
  return 1
end

local ENDED = {
  done = 'completed', failed = 'failed', indeterminate = 'indeterminate', ready = 'released',
}

-- id, fence, status, next response id, the upstream's id of the request
function op.finish()
  local key = batch_key(ARGV[4])
  local b = redis.call('HMGET', key, 's', 'f', 't', 'nx')
  if b[2] ~= ARGV[5] then return 0 end
  if b[1] == ARGV[6] then return (b[4] or '') == ARGV[7] and 1 or 0 end
  if b[1] ~= 'claimed' and b[1] ~= 'dispatched' then return 0 end
  audit('continuation.' .. ENDED[ARGV[6]], ARGV[4], 'f', b[2], 'u', ARGV[8], 'nx', ARGV[7])
  redis.call('HSET', key, 's', ARGV[6], 'nx', ARGV[7])
  redis.call('ZREM', prefix .. 'leases', ARGV[4])
  -- Nothing ran, so the same answers may be claimed and sent once more.
  if ARGV[6] == 'ready' then set_ready(ARGV[4], key) end
  touched(b[3])
  return 1
end

-- id, sealed note, nonce
function op.abandon()
  local key = batch_key(ARGV[4])
  lapse_all(key)
  local b = redis.call('HMGET', key, 's', 't', 'an')
  if b[1] == 'abandoned' then return b[3] == ARGV[6] and 1 or 0 end
  if b[1] ~= 'waiting' then return 0 end
  audit('continuation.abandoned', ARGV[4], 'note', ARGV[5])
  redis.call('HSET', key, 's', 'abandoned', 'o', 0, 'an', ARGV[6])
  for _, id in ipairs(members(key)) do
    if redis.call('HGET', apr(id), 's') == 'pending' then
      redis.call('HSET', apr(id), 'note', ARGV[5])
      resolve(id, 'canceled', '', 'note', ARGV[5])
    end
  end
  touched(b[2])
  return 1
end

return op[ARGV[1]]()
