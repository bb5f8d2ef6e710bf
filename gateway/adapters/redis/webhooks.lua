-- Events, endpoints and deliveries of webhooks: every transition is one call (APPR-9).
-- KEYS: one key of the tenant, for routing. ARGV: operation, prefix, tenant, then its own.
-- Time is the server's alone. A call that is repeated after a lost connection changes nothing.
--
-- Event hash: e type · o occurred at (s) · d sealed data · x when it ends (ms, 0 never)
-- hooks: <endpoint> version:sealed endpoint · hooks:off: <endpoint> why it is off
-- hooks:due: endpoints by their earliest delivery · hook:<endpoint>:due, :log: its deliveries by
--   when they are due, and by when they were made
-- Delivery hash: p endpoint · i event · e type · s status · n attempts · r attempts before it was
--   sent for anew · c created · l last attempt · st last status · er last error · f fence
local prefix, tenant = ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local JOBS_TTL = 35 * 86400000
local KEEP = 7 * 86400000
local LISTED = 10000

local function int(n) return string.format('%.0f', n) end
local function evt(id) return prefix .. 'evt:' .. id end
local function dlv(id) return prefix .. 'dlv:' .. id end
local function due(endpoint) return prefix .. 'hook:' .. endpoint .. ':due' end
local function log(endpoint) return prefix .. 'hook:' .. endpoint .. ':log' end
local hooks, off, all_due = prefix .. 'hooks', prefix .. 'hooks:off', prefix .. 'hooks:due'

local function publish(text) redis.call('PUBLISH', 'gw:wake', text) end

-- Tell when an endpoint must be looked at next.
local function recall(endpoint)
  local first = redis.call('ZRANGE', due(endpoint), 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', all_due, first[2], endpoint)
    redis.call('PEXPIRE', all_due, int(KEEP))
  else
    redis.call('ZREM', all_due, endpoint)
  end
end

local function await(endpoint, id, at)
  redis.call('ZADD', due(endpoint), int(at), id)
  redis.call('PEXPIRE', due(endpoint), int(KEEP))
end

local function finish(endpoint, id, status, problem)
  redis.call('ZREM', due(endpoint), id)
  redis.call('HSET', dlv(id), 's', status, 'er', problem)
end

local function show_event(id)
  local e = redis.call('HMGET', evt(id), 'e', 'o', 'd', 'x')
  if not e[1] then return false end
  return e
end

local function show(id)
  local d = redis.call('HGETALL', dlv(id))
  if #d == 0 then return false end
  local endpoint = redis.call('HGET', dlv(id), 'p')
  return {id, d, redis.call('ZSCORE', due(endpoint), id) or ''}
end

local op = {}

-- event id, type, sealed data. The same event again changes nothing.
function op.emit()
  local id, key, jobs = ARGV[4], evt(ARGV[4]), prefix .. 'jobs'
  if redis.call('EXISTS', key) == 1 then return 0 end
  local at = string.format('%.3f', now / 1000)
  redis.call('HSET', key, 'e', ARGV[5], 'o', at, 'd', ARGV[6], 'x', 0)
  redis.call('PEXPIRE', key, int(JOBS_TTL))
  redis.call('XADD', jobs, '*', 'o', at, 'k', 'webhook', 's', id, 'e', ARGV[5], 'i', id)
  redis.call('PEXPIRE', jobs, int(JOBS_TTL))
  publish('jobs:' .. tenant)
  return 1
end

function op.event() return show_event(ARGV[4]) end

-- event id, type, occurred at, sealed data, ends at, then pairs of endpoint and delivery.
-- Makes the deliveries that are not there yet; returns how many.
function op.spread()
  local id, made = ARGV[4], 0
  if redis.call('EXISTS', evt(id)) == 0 and #ARGV > 8 then
    redis.call('HSET', evt(id), 'e', ARGV[5], 'o', ARGV[6], 'd', ARGV[7], 'x', ARGV[8])
  end
  redis.call('PEXPIRE', evt(id), int(KEEP))
  for n = 9, #ARGV, 2 do
    local endpoint, delivery = ARGV[n], ARGV[n + 1]
    if redis.call('EXISTS', dlv(delivery)) == 0 then
      redis.call('HSET', dlv(delivery), 'p', endpoint, 'i', id, 'e', ARGV[5], 's', 'pending',
        'n', 0, 'r', 0, 'c', int(now), 'f', 0)
      redis.call('PEXPIRE', dlv(delivery), int(KEEP))
      await(endpoint, delivery, now)
      recall(endpoint)
      local last = redis.call('ZRANGE', log(endpoint), -1, -1, 'WITHSCORES')
      local micros = clock[1] * 1000000 + clock[2]
      redis.call('ZADD', log(endpoint), int(math.max(micros, (tonumber(last[2]) or 0) + 1)), delivery)
      redis.call('ZREMRANGEBYSCORE', log(endpoint), '-inf', int((now - KEEP) * 1000))
      redis.call('ZREMRANGEBYRANK', log(endpoint), 0, -LISTED - 1)
      redis.call('PEXPIRE', log(endpoint), int(KEEP))
      made = made + 1
    end
  end
  if made > 0 then publish('hooks:' .. tenant) end
  return made
end

-- lease in ms, most for each endpoint, then pairs of endpoint and how many there instead.
-- What is due is lent out for the lease; who dies with it gives it back by that.
function op.take()
  local lease, most, room, taken = ARGV[4], tonumber(ARGV[5]), {}, {}
  for n = 6, #ARGV, 2 do room[ARGV[n]] = tonumber(ARGV[n + 1]) end
  for _, endpoint in ipairs(redis.call('ZRANGEBYSCORE', all_due, '-inf', int(now))) do
    local stopped = redis.call('HGET', off, endpoint)
    local sealed = redis.call('HGET', hooks, endpoint)
    local ids = redis.call('ZRANGEBYSCORE', due(endpoint), '-inf', int(now), 'LIMIT', 0,
      room[endpoint] or most)
    for _, id in ipairs(ids) do
      local d = redis.call('HMGET', dlv(id), 'i', 'r')
      local event = d[1] and show_event(d[1])
      if not event then
        redis.call('ZREM', due(endpoint), id)
        redis.call('DEL', dlv(id))
      else
        -- Who asks for it anew wants it although its time is over.
        if d[2] ~= '0' then event[4] = '0' end
        await(endpoint, id, now + lease)
        redis.call('HINCRBY', dlv(id), 'f', 1)
        taken[#taken + 1] = {show(id), event, sealed, stopped}
      end
    end
    recall(endpoint)
  end
  return {int(now), taken}
end

-- delivery, fence, outcome (delivered, retry, failed, gone; expired, canceled: it was not sent),
-- status or '', error, delay in ms. Returns what it became, '' when it is no longer the holder's to settle.
function op.settle()
  local id, outcome, key = ARGV[4], ARGV[6], dlv(ARGV[4])
  local d = redis.call('HMGET', key, 'p', 'f', 'i', 'r')
  if not d[1] or d[2] ~= ARGV[5] then return '' end
  local endpoint, problem = d[1], ARGV[8]
  -- A repeat of this call finds another fence.
  redis.call('HINCRBY', key, 'f', 1)
  if outcome ~= 'canceled' and outcome ~= 'expired' then
    redis.call('HSET', key, 'l', int(now), 'st', ARGV[7])
    redis.call('HINCRBY', key, 'n', 1)
  end
  local at = now + tonumber(ARGV[9])
  if outcome == 'retry' and d[4] == '0' then
    local ends = tonumber(redis.call('HGET', evt(d[3]), 'x') or '0')
    if ends > 0 and at >= ends then outcome = 'expired' end
  end
  if outcome == 'retry' then
    redis.call('HSET', key, 'er', problem)
    await(endpoint, id, at)
  elseif outcome == 'gone' then
    finish(endpoint, id, 'failed', problem)
    if redis.call('HSETNX', off, endpoint, 'gone') == 1 then outcome = 'disabled' end
  elseif outcome == 'expired' then
    finish(endpoint, id, 'failed', 'expired')
  else
    finish(endpoint, id, outcome, problem)
  end
  recall(endpoint)
  return outcome
end

-- delivery. Send it for anew, now, with the whole schedule before it.
function op.redeliver()
  local id, key = ARGV[4], dlv(ARGV[4])
  local d = redis.call('HMGET', key, 'p', 'n', 'i')
  if not d[1] or redis.call('EXISTS', evt(d[3])) == 0 then return false end
  if redis.call('HEXISTS', off, d[1]) == 1 then return 'off' end
  -- Never 0, which says that it was not sent for anew.
  redis.call('HSET', key, 's', 'pending', 'r', math.max(tonumber(d[2]), 1))
  redis.call('PEXPIRE', key, int(KEEP))
  redis.call('PEXPIRE', evt(d[3]), int(KEEP))
  await(d[1], id, now)
  recall(d[1])
  publish('hooks:' .. tenant)
  return show(id)
end

function op.delivery() return show(ARGV[4]) end

-- endpoint, delivery to begin after or '', how many. Newest first.
function op.deliveries()
  local index, start, page = log(ARGV[4]), 0, {}
  if ARGV[5] ~= '' then
    local place = redis.call('ZREVRANK', index, ARGV[5])
    if not place then return {{}, 0} end
    start = place + 1
  end
  local stop = start + tonumber(ARGV[6]) - 1
  for _, id in ipairs(redis.call('ZREVRANGE', index, start, stop)) do
    page[#page + 1] = show(id) or nil
  end
  return {page, redis.call('ZCARD', index) > stop + 1 and 1 or 0}
end


-- Returns the time, the endpoints of the API, and which of all are off.
function op.endpoints()
  return {int(now), redis.call('HGETALL', hooks), redis.call('HGETALL', off)}
end

-- endpoint, version that it has, next version, sealed endpoint, most endpoints.
-- Returns 1; 0 when it has another version; -1 when there are too many.
function op.put()
  local id, before, after = ARGV[4], ARGV[5], ARGV[6]
  local found = redis.call('HGET', hooks, id)
  local version = found and string.match(found, '^%d+') or '0'
  local value = after .. ':' .. ARGV[7]
  if found == value then return 1 end
  if version ~= before then return 0 end
  if not found and redis.call('HLEN', hooks) >= tonumber(ARGV[8]) then return -1 end
  redis.call('HSET', hooks, id, value)
  return 1
end

-- endpoint, why it is off or ''
function op.switch()
  if ARGV[5] == '' then
    redis.call('HDEL', off, ARGV[4])
  else
    redis.call('HSET', off, ARGV[4], ARGV[5])
  end
  return 1
end

-- endpoint. What was to be sent there is not.
function op.remove()
  local id = ARGV[4]
  if redis.call('HDEL', hooks, id) == 0 then return 0 end
  redis.call('HDEL', off, id)
  redis.call('ZREM', all_due, id)
  for _, delivery in ipairs(redis.call('ZRANGE', log(id), 0, -1)) do
    redis.call('DEL', dlv(delivery))
  end
  redis.call('DEL', due(id), log(id))
  return 1
end

return op[ARGV[1]]()
