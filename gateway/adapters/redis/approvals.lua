-- Approvals and batches: every transition is one call of this script (APPR-5, APPR-6).
-- KEYS: one key of the tenant, for routing. ARGV: operation, prefix, tenant, then its own.
--
-- Time is the server's alone. An operation that is repeated after a lost connection finds its own
-- mark (a vote's token, a call's nonce) and answers the same again. Keys found inside carry the
-- hash tag of the declared one (see keys.py).
--
-- Approval hash: c sealed core · s status · b batch · t turn · f token of the fingerprint · q quorum
--   n approvals so far · v version · x on_timeout · by · ca/ea/ra/da created, expires, retained
--   until, decided (ms) · wa when to warn (ms) · el level of escalation · et when to escalate (ms)
--   xs extensions · xm most of them · vo tokens in order · v:<token> verdict and sealed vote
--   en, e:<n> history, see `note` · nn nonce of the last change by a person
-- Batch hash: s status · t turn · o open · f fence · l lease until (ms) · ids · h held · nx next
--   response · j continues by a job (0, 1) · w why abandoned · cn/dn/an/rn:… nonce of claim, dispatch,
--   abandon, retry

local prefix, tenant = ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)
local DAY = 86400000
local EVENTS_TTL = 35 * DAY
local INBOX_LENGTH = 10000
-- An approver is warned when this part of the time is over.
local WARN = 0.8

local function int(n) return string.format('%.0f', n) end
local function apr(id) return prefix .. 'apr:' .. id end
local function batch_key(id) return prefix .. 'batch:' .. id end

-- A key that several records share lives as long as the longest of them.
local function keep(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, int(ttl)) end
end

local function publish(text) redis.call('PUBLISH', 'gw:wake', text) end

local function touched(turn) publish('turn:' .. tenant .. ':' .. turn) end

-- The first leg of a background turn has a lane of its own (see jobs.lua).
local function lane(batch) return prefix .. (batch:sub(1, 4) == 'run_' and 'jobs:background' or 'jobs') end

local function job(stream, ...)
  redis.call('XADD', stream, '*', 'o', string.format('%.3f', now / 1000), ...)
  keep(stream, EVENTS_TTL)
  publish('jobs:' .. tenant)
end

-- Every transition leaves an entry for the audit, in the same script, so that neither is on record
-- without the other (APPR-11); it is chained later, by whichever replica comes first. A full server
-- refuses a script at its first write that needs memory: so this comes first, but after a ZREM where
-- time alone has decided. `id` is an approval's or a batch's; what else matters is read from its
-- record by the chainer.
-- Fields: s status · by what decided · f fence · u the upstream's id of the request · nx its response
-- · vote, note, change: sealed as in the record · detail: sealed by `seal_detail` (audit.py)
local function audit(event, id, ...)
  redis.call('XADD', prefix .. 'audit:new', '*', 'e', event, 'i', id, ...)
end

-- Write a line of an approval's history: "<ms> <event> <status> <by> <sealed>". What did it (by):
-- 'core', 'timeout', 'rewind', the token of a vote, or what is sealed: 'change' of the approval,
-- 'batch' or 'note' of its batch.
local function note(id, event, by, sealed)
  local key = apr(id)
  local line = redis.call('HINCRBY', key, 'en', 1)
  redis.call('HSET', key, 'e:' .. line, int(now) .. ' ' .. event .. ' '
    .. redis.call('HGET', key, 's') .. ' ' .. by .. ' ' .. (sealed or ''))
end

-- Something happened that others are told of: approvers' webhooks and the inbox.
local function happened(id, event, by, sealed)
  note(id, event, by, sealed)
  local a = redis.call('HMGET', apr(id), 'by', 'v')
  if a[1] == 'policy' then return end
  redis.call('XADD', prefix .. 'inbox', 'MAXLEN', INBOX_LENGTH, '*', 'a', id, 'e', event)
  keep(prefix .. 'inbox', EVENTS_TTL)
  publish('inbox:' .. tenant)
  if a[1] == 'approver' then
    -- The event's id is the same however often it is delivered.
    local name = 'evt_' .. id .. '_' .. event .. '_' .. a[2]
    job(prefix .. 'jobs', 'k', 'webhook', 's', id, 'e', 'approval.' .. event, 'i', name)
  end
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

-- Let a job go on with a batch, now or later; a batch that its caller goes on with has none.
local function go_on(id, key, delay)
  if redis.call('HGET', key, 'j') ~= '1' then return end
  local stream = lane(id)
  if not delay or delay <= 0 then return job(stream, 'k', 'continue', 's', id) end
  local fields = {'o', string.format('%.3f', now / 1000), 'k', 'continue', 's', id}
  redis.call('ZADD', stream .. ':later', int(now + delay), cmsgpack.pack(fields))
  keep(stream .. ':later', EVENTS_TTL)
end

local function set_ready(id, key, delay)
  redis.call('HSET', key, 's', 'ready')
  go_on(id, key, delay)
end

-- Give an approval its final status; the last pending one of a batch makes the batch ready.
-- What follows `sealed` goes into the audit: the sealed vote, note or change that decided.
local function resolve(id, status, by, sealed, ...)
  local key = apr(id)
  local a = redis.call('HMGET', key, 'b', 't', 's')
  redis.call('ZREM', prefix .. 'deadlines', id)
  redis.call('ZREM', prefix .. 'aprs:status:' .. a[3], id)
  audit('approval.resolved', id, 's', status, 'by', by, ...)
  local score = redis.call('ZSCORE', prefix .. 'aprs', id)
  if score then file(id, status, score, redis.call('PTTL', key)) end
  redis.call('HSET', key, 's', status, 'da', int(now))
  redis.call('HINCRBY', key, 'v', 1)
  happened(id, 'resolved', by, sealed)
  local bkey = batch_key(a[1])
  if a[3] == 'pending' and redis.call('HGET', bkey, 's') == 'waiting'
    and redis.call('HINCRBY', bkey, 'o', -1) == 0 then
    set_ready(a[1], bkey)
  end
  touched(a[2])
end

local function members(key)
  local ids = {}
  for id in string.gmatch(redis.call('HGET', key, 'ids') or '', '%S+') do ids[#ids + 1] = id end
  return ids
end

-- End a batch that will not be answered: the turn goes back to before it (`w` says why). What is
-- still pending ends with it, each with its true cause. A job ends the turn, whoever is alive.
local function give_up(id, cause, by, sealed, ...)
  local key = batch_key(id)
  audit('continuation.abandoned', id, 'by', cause, ...)
  redis.call('ZREM', prefix .. 'leases', id)
  redis.call('HSET', key, 's', 'abandoned', 'o', 0, 'w', cause)
  for _, member in ipairs(members(key)) do
    local a = redis.call('HMGET', apr(member), 's', 'ea')
    if a[1] == 'pending' then
      if now >= tonumber(a[2]) then
        resolve(member, 'expired', 'timeout')
      else
        resolve(member, 'canceled', by, sealed, ...)
      end
    end
  end
  local b = redis.call('HMGET', key, 'j', 't')
  if cause ~= 'caller' and b[1] == '1' then job(lane(id), 'k', 'continue', 's', id) end
  touched(b[2])
end

-- When something is to happen to a pending approval next, for the sweeper.
local function schedule(id)
  local key = apr(id)
  local a = redis.call('HMGET', key, 'ea', 'wa', 'el', 'et')
  local due, level = tonumber(a[1]), 0
  if a[2] then due = math.min(due, tonumber(a[2])) end
  for at in string.gmatch(a[4], '%S+') do
    level = level + 1
    if level > tonumber(a[3]) then due = math.min(due, tonumber(at)) end
  end
  redis.call('ZADD', prefix .. 'deadlines', int(due), id)
end

local function escalate(id, by, sealed, ...)
  audit('approval.escalated', id, 'by', by, ...)
  redis.call('HINCRBY', apr(id), 'el', 1)
  redis.call('HINCRBY', apr(id), 'v', 1)
  happened(id, 'escalated', by, sealed)
  schedule(id)
end

-- Do what time has brought, on every touch, so that a late sweeper changes nothing: expire,
-- escalate, warn.
local function advance(id)
  local key = apr(id)
  local a = redis.call('HMGET', key, 's', 'ea', 'x', 'b', 'el', 'et', 'wa', 't')
  if a[1] ~= 'pending' then return end
  if now >= tonumber(a[2]) then
    if a[3] == 'rewind' then
      redis.call('ZREM', prefix .. 'deadlines', id)
      give_up(a[4], 'timeout', 'rewind')
    else
      resolve(id, 'expired', 'timeout')
    end
    return
  end
  local level, changed = 0, false
  for at in string.gmatch(a[6], '%S+') do
    level = level + 1
    if level > tonumber(a[5]) and now >= tonumber(at) then
      redis.call('ZREM', prefix .. 'deadlines', id)
      escalate(id, 'timeout')
      changed = true
    end
  end
  if a[7] and now >= tonumber(a[7]) then
    redis.call('ZREM', prefix .. 'deadlines', id)
    redis.call('HDEL', key, 'wa')
    happened(id, 'expiring', 'timeout')
    schedule(id)
    changed = true
  end
  if changed then touched(a[8]) end
end

local function show(id)
  local a = redis.call('HGETALL', apr(id))
  if #a == 0 then return false end
  return {id, a}
end

local function show_batch(key)
  local shown = {}
  for _, id in ipairs(members(key)) do shown[#shown + 1] = show(id) or nil end
  return {redis.call('HGETALL', key), shown}
end

local function advance_all(key)
  if redis.call('HGET', key, 's') ~= 'waiting' then return end
  for _, id in ipairs(members(key)) do advance(id) end
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
  go_on(id, key)
  touched(redis.call('HGET', key, 't'))
end

local op = {}

-- id, turn, retention, life, held, claim lease or '', then 11 values for each approval: id, core,
-- status, fingerprint token, quorum, on_timeout, by, timeout, request id, times of escalation, most
-- extensions.
function op.open()
  local id, turn, retention, ttl = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
  local held, claim = ARGV[8], tonumber(ARGV[9])
  local key = batch_key(id)
  if redis.call('EXISTS', key) == 1 then
    advance_all(key)
    return show_batch(key)
  end
  local last = redis.call('ZRANGE', prefix .. 'aprs', -1, -1, 'WITHSCORES')
  local seq = math.max(micros, (tonumber(last[2]) or 0) + 1)
  local ids, open, by_job = {}, 0, '1'
  local turn_index = prefix .. 'aprs:turn:' .. turn
  for n = 10, #ARGV, 11 do
    local a, status, by, timeout = ARGV[n], ARGV[n + 2], ARGV[n + 6], tonumber(ARGV[n + 7])
    local held_on = ARGV[n + 5] == 'hold'
    local times = {}
    for after in string.gmatch(ARGV[n + 9], '%S+') do times[#times + 1] = int(now + after) end
    ids[#ids + 1] = a
    if status == 'pending' then
      audit('approval.requested', a)
    else
      audit('approval.resolved', a, 's', status, 'by', 'core')
    end
    -- A held one waits as long as its turn is kept; its time-out only warns.
    redis.call('HSET', apr(a), 'c', ARGV[n + 1], 's', status, 'b', id, 't', turn,
      'f', ARGV[n + 3], 'q', ARGV[n + 4], 'n', 0, 'v', 1, 'x', ARGV[n + 5], 'by', by,
      'ca', int(now), 'ea', int(now + (held_on and retention or timeout)),
      'ra', int(now + retention), 'el', 0, 'et', table.concat(times, ' '),
      'xs', 0, 'xm', ARGV[n + 10])
    redis.call('PEXPIRE', apr(a), int(ttl))
    redis.call('SET', prefix .. 'mcpr:' .. ARGV[n + 8], a, 'PX', int(ttl))
    redis.call('ZADD', prefix .. 'aprs', int(seq), a)
    redis.call('ZADD', turn_index, int(seq), a)
    file(a, status, int(seq), ttl)
    seq = seq + 1
    if by == 'caller' then by_job = '0' end
    if status == 'pending' then
      open = open + 1
      redis.call('HSET', apr(a), 'wa', int(now + timeout * (held_on and 1 or WARN)))
      schedule(a)
      happened(a, 'requested', 'core')
    else
      redis.call('HSET', apr(a), 'da', int(now))
      happened(a, 'resolved', 'core')
    end
  end
  redis.call('HSET', key, 's', 'waiting', 't', turn, 'o', open, 'f', 0, 'l', 0, 'h', held,
    'ids', table.concat(ids, ' '), 'j', by_job)
  redis.call('PEXPIRE', key, int(ttl))
  keep(prefix .. 'aprs', ttl)
  keep(turn_index, ttl)
  keep(prefix .. 'deadlines', ttl)
  -- A turn that waits is kept as long as what it waits for.
  keep(prefix .. 'turn:' .. turn, ttl)
  keep(prefix .. 'log:' .. turn, ttl)
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
  advance(id)
  return show(id)
end

-- statuses
function op.counts()
  local found = {}
  for n = 4, #ARGV do found[n - 3] = redis.call('ZCARD', prefix .. 'aprs:status:' .. ARGV[n]) end
  return found
end

function op.by_request()
  local found = {}
  for n = 4, #ARGV do
    local id = redis.call('GET', prefix .. 'mcpr:' .. ARGV[n])
    if id then advance(id) end
    found[n - 3] = id and show(id) or false
  end
  return found
end

-- Do what is due, and settle leases that lapsed: at most `most` of each.
local function sweep(most)
  local expired = {}
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'deadlines', '-inf', int(now), 'LIMIT', 0, most)
  for _, id in ipairs(due) do
    advance(id)
    local status = redis.call('HGET', apr(id), 's')
    if status == 'expired' then expired[#expired + 1] = id end
    if status ~= 'pending' then redis.call('ZREM', prefix .. 'deadlines', id) end
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
  return {expired, #due == most or #late == most}
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
    advance(found[n])
    local a = show(found[n])
    if a then page[#page + 1] = a else redis.call('ZREM', index, found[n]) end
  end
  return {page, #found == most * 2 and found[#found] or false}
end

-- Say why a pending approval is not changed, if so.
local function refused(id, version)
  local a = redis.call('HMGET', apr(id), 's', 'v')
  if not a[1] then return 'not_found' end
  if a[1] == 'expired' then return 'expired' end
  if a[1] ~= 'pending' then return 'already_decided' end
  if version ~= '' and version ~= a[2] then return 'version_mismatch' end
end

-- Count a vote; returns why it does not count, or '', and whether it is a new one.
local function count_vote(id, verdict, sealed, version, same, mine, token)
  local key = apr(id)
  if not same then return 'fingerprint_mismatch', 0 end
  if mine then return string.match(mine, '^%a+') == verdict and '' or 'vote_conflict', 0 end
  local problem = refused(id, version)
  if problem then return problem, 0 end
  audit('approval.voted', id, 's', verdict, 'by', token, 'vote', sealed)
  local order = redis.call('HGET', key, 'vo')
  redis.call('HSET', key, 'v:' .. token, verdict .. ':' .. sealed,
    'vo', order and order .. ' ' .. token or token)
  if verdict == 'deny' then
    resolve(id, 'denied', token, '', 'vote', sealed)
  elseif redis.call('HINCRBY', key, 'n', 1) >= tonumber(redis.call('HGET', key, 'q')) then
    resolve(id, 'approved', token, '', 'vote', sealed)
  else
    redis.call('HINCRBY', key, 'v', 1)
    happened(id, 'voted', token)
    touched(redis.call('HGET', key, 't'))
  end
  return '', 1
end

-- id, verdict, sealed vote, version or '', number of keys, how long an answer is remembered,
-- fingerprint tokens, actor tokens, and where the request has a key of its own: that key's tokens,
-- and tokens of the request.
-- Returns the problem or '', the approval, and whether the vote is a new one.
function op.vote()
  local id, count, ttl = ARGV[4], tonumber(ARGV[8]), ARGV[9]
  local key = apr(id)
  advance(id)
  if redis.call('EXISTS', key) == 0 then return {'not_found', false, 0} end
  local function token(kind, n) return ARGV[9 + kind * count + n] end
  local once = token(2, 1) and prefix .. 'idem:' .. id .. ':'
  local same, mine = false, false
  for n = 1, count do
    local answered = once and redis.call('GET', once .. token(2, n))
    if answered then
      local before = cmsgpack.unpack(answered)
      if before[1] ~= token(3, n) then return {'idempotency_key_reused', show(id), 0} end
      -- The sealed core never changes, and is not kept twice.
      local fields = before[3]
      fields[#fields + 1] = 'c'
      fields[#fields + 1] = redis.call('HGET', key, 'c')
      return {before[2], {id, fields}, 0}
    end
    same = same or token(0, n) == redis.call('HGET', key, 'f')
    mine = mine or redis.call('HGET', key, 'v:' .. token(1, n))
  end
  local problem, new = count_vote(id, ARGV[5], ARGV[6], ARGV[7], same, mine, token(1, 1))
  local shown = show(id)
  if once then
    local fields = {}
    for n = 1, #shown[2], 2 do
      if shown[2][n] ~= 'c' then
        fields[#fields + 1] = shown[2][n]
        fields[#fields + 1] = shown[2][n + 1]
      end
    end
    redis.call('SET', once .. token(2, 1), cmsgpack.pack({token(3, 1), problem, fields}), 'PX', ttl)
  end
  return {problem, shown, new}
end

-- id, version or '', nonce, sealed actor, more milliseconds
function op.extend()
  local id, key, more = ARGV[4], apr(ARGV[4]), tonumber(ARGV[8])
  advance(id)
  if redis.call('HGET', key, 'nn') == ARGV[6] then return {'', show(id), 0} end
  local problem = refused(id, ARGV[5])
  if problem then return {problem, show(id), 0} end
  local a = redis.call('HMGET', key, 'xs', 'xm', 'ea', 'ra', 't')
  if tonumber(a[1]) >= tonumber(a[2]) then return {'too_many_extensions', show(id), 0} end
  local expires = tonumber(a[3]) + more
  if expires > tonumber(a[4]) then return {'beyond_retention', show(id), 0} end
  audit('approval.extended', id, 'by', 'change', 'change', ARGV[7])
  redis.call('HSET', key, 'nn', ARGV[6], 'ea', int(expires), 'wa', int(now + (expires - now) * WARN))
  redis.call('HINCRBY', key, 'xs', 1)
  redis.call('HINCRBY', key, 'v', 1)
  schedule(id)
  happened(id, 'extended', 'change', ARGV[7])
  touched(a[5])
  return {'', show(id), 1}
end

-- id, version or '', nonce, sealed actor
function op.escalate()
  local id, key = ARGV[4], apr(ARGV[4])
  advance(id)
  if redis.call('HGET', key, 'nn') == ARGV[6] then return {'', show(id), 0} end
  local problem = refused(id, ARGV[5])
  if problem then return {problem, show(id), 0} end
  local a = redis.call('HMGET', key, 'el', 'et', 't')
  local _, levels = string.gsub(a[2], '%S+', '')
  if tonumber(a[1]) >= levels then return {'no_escalation_left', show(id), 0} end
  redis.call('HSET', key, 'nn', ARGV[6])
  escalate(id, 'change', ARGV[7], 'change', ARGV[7])
  touched(a[3])
  return {'', show(id), 1}
end

-- id, version or '', nonce, sealed actor and reason, status: canceled or superseded
function op.withdraw()
  local id, key = ARGV[4], apr(ARGV[4])
  advance(id)
  if redis.call('HGET', key, 'nn') == ARGV[6] then return {'', show(id), 0} end
  local problem = refused(id, ARGV[5])
  if problem then return {problem, show(id), 0} end
  redis.call('HSET', key, 'nn', ARGV[6])
  resolve(id, ARGV[8], 'change', ARGV[7], 'change', ARGV[7])
  return {'', show(id), 1}
end

function op.batch()
  local key = batch_key(ARGV[4])
  if redis.call('EXISTS', key) == 0 then return false end
  advance_all(key)
  return show_batch(key)
end

-- id, lease, nonce
function op.claim()
  local id, ms, nonce = ARGV[4], tonumber(ARGV[5]), ARGV[6]
  local key = batch_key(id)
  advance_all(key)
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

-- id, fence, nonce, then id and sealed cause of each approval that holds no more.
-- Refused after the lease: somebody else may be about to claim.
function op.dispatch()
  local key = batch_key(ARGV[4])
  local b = redis.call('HMGET', key, 's', 'f', 'l', 'dn')
  if b[2] ~= ARGV[5] then return 0 end
  if b[1] == 'dispatched' then return b[4] == ARGV[6] and 1 or 0 end
  if b[1] ~= 'claimed' or now >= tonumber(b[3]) then return 0 end
  audit('continuation.dispatched', ARGV[4], 'f', b[2])
  redis.call('HSET', key, 's', 'dispatched', 'dn', ARGV[6])
  for n = 7, #ARGV, 2 do
    local a = redis.call('HMGET', apr(ARGV[n]), 's', 'b')
    if a[1] == 'approved' and a[2] == ARGV[4] then
      resolve(ARGV[n], 'superseded', 'change', ARGV[n + 1], 'change', ARGV[n + 1])
    end
  end
  return 1
end

local ENDED = {
  done = 'completed', failed = 'failed', indeterminate = 'indeterminate', ready = 'released',
}

-- id, fence, status, next response id, the upstream's id of the request, delay in ms of `ready`
function op.finish()
  local key = batch_key(ARGV[4])
  local b = redis.call('HMGET', key, 's', 'f', 't', 'nx')
  if b[2] ~= ARGV[5] then return 0 end
  if b[1] == ARGV[6] then return (b[4] or '') == ARGV[7] and 1 or 0 end
  if b[1] ~= 'claimed' and b[1] ~= 'dispatched' then return 0 end
  audit('continuation.' .. ENDED[ARGV[6]], ARGV[4], 'f', b[2], 'u', ARGV[8], 'nx', ARGV[7])
  redis.call('HSET', key, 's', ARGV[6], 'nx', ARGV[7])
  redis.call('ZREM', prefix .. 'leases', ARGV[4])
  if ARGV[6] == 'done' then redis.call('HSET', key, 'h', '') end -- the turn is on record, or held anew
  -- Nothing ran, so the same answers may be claimed and sent once more.
  if ARGV[6] == 'ready' then set_ready(ARGV[4], key, tonumber(ARGV[9])) end
  touched(b[3])
  return 1
end

local OVER = { done = true, failed = true, abandoned = true }

-- id. What is over needs its turn no more.
function op.forget()
  local key = batch_key(ARGV[4])
  if OVER[redis.call('HGET', key, 's')] then redis.call('HSET', key, 'h', '') end
  return 1
end

local RUNS = { ready = true, claimed = true, dispatched = true }

-- id, nonce, cause, sealed actor and reason, '1' for a turn that may be stopped while it runs. A
-- caller gives up what waits, and in background what runs; a person also what is in doubt.
function op.abandon()
  local id, key, cause = ARGV[4], batch_key(ARGV[4]), ARGV[6]
  advance_all(key)
  local b = redis.call('HMGET', key, 's', 'an')
  if b[1] == 'abandoned' then return b[2] == ARGV[5] and 1 or 0 end
  local stopped = ARGV[8] == '1' and RUNS[b[1]]
  if b[1] ~= 'waiting' and not stopped and not (cause == 'rewind' and b[1] == 'indeterminate') then
    return 0
  end
  if stopped then publish('stop:' .. tenant .. ':' .. id) end
  if cause == 'rewind' then
    give_up(id, cause, 'batch', ARGV[7], 'change', ARGV[7])
    for _, member in ipairs(members(key)) do note(member, 'rewound', 'batch', ARGV[7]) end
  else
    give_up(id, cause, 'note', ARGV[7], 'note', ARGV[7])
  end
  redis.call('HSET', key, 'an', ARGV[5])
  return 1
end

-- id, nonce, sealed actor. The answers of a batch in doubt are sent once more: by a job, or by the
-- caller that gave them.
function op.retry()
  local id, key = ARGV[4], batch_key(ARGV[4])
  local b = redis.call('HMGET', key, 's', 'rn:' .. ARGV[5], 't')
  if b[2] then return 1 end
  if b[1] ~= 'indeterminate' then return 0 end
  audit('continuation.retried', id, 'f', redis.call('HGET', key, 'f'), 'change', ARGV[6])
  redis.call('HSET', key, 'rn:' .. ARGV[5], '1')  -- all of them: a key may come again much later
  for _, member in ipairs(members(key)) do note(member, 'retried', 'batch', ARGV[6]) end
  set_ready(id, key)
  touched(b[3])
  return 1
end

local function place(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end

local function before(one, other)
  local ms, number = place(one)
  local other_ms, other_number = place(other)
  return ms < other_ms or (ms == other_ms and number < other_number)
end

-- cursor, or '' for its present end; how many. Returns entries, the cursor after them, and
-- whether some before them are kept no more. One that is still to come was given by a server
-- that has lost it: its reader begins anew.
function op.inbox()
  local key, cursor = prefix .. 'inbox', ARGV[4]
  if redis.call('EXISTS', key) == 0 then return {{}, cursor == '' and '0-0' or cursor, 0} end
  local info = redis.call('XINFO', 'STREAM', key)
  local about = {}
  for n = 1, #info, 2 do about[info[n]] = info[n + 1] end
  if cursor == '' then return {{}, about['last-generated-id'], 0} end
  if before(about['last-generated-id'], cursor) then return {{}, about['last-generated-id'], 1} end
  local lost = 0
  if tonumber(about['entries-added']) > tonumber(about['length']) and about['first-entry'] then
    local seen = redis.call('XRANGE', key, '-', cursor, 'COUNT', 1)
    if #seen == 0 then lost = 1 end
  end
  local found = redis.call('XRANGE', key, '(' .. cursor, '+', 'COUNT', ARGV[5])
  if #found > 0 then cursor = found[#found][1] end
  return {found, cursor, lost}
end

return op[ARGV[1]]()
