-- One lane of a tenant's jobs. KEYS: its stream. ARGV: operation, tenant, then its own.
-- A job is a flat list of fields: k kind, s subject, o occurred at, and where they apply
-- e event, i event id, t target, a attempt.
local key, later = KEYS[1], KEYS[1] .. ':later'
local TTL = 35 * 86400000

local function millis()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local function wake() redis.call('PUBLISH', 'gw:wake', 'jobs:' .. ARGV[2]) end

local op = {}

-- Move what is due into the stream. A full server cannot take it; what waits there already can
-- still be done, so that is no error.
local function move(most)
  local due = redis.call('ZRANGEBYSCORE', later, '-inf', string.format('%.0f', millis()), 'LIMIT', 0, most)
  for _, packed in ipairs(due) do
    local added = redis.pcall('XADD', key, '*', unpack(cmsgpack.unpack(packed)))
    if type(added) == 'table' and added.err then return end
    redis.call('ZREM', later, packed)
    redis.call('PEXPIRE', key, TTL)
  end
end

-- consumer, most, lease in ms, where to look on for jobs whose worker died.
-- Returns that place for the next time, and the jobs.
function op.take()
  local consumer, most, lease, start = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
  move(most)
  if redis.call('EXISTS', key) == 0 then return {'0-0', {}} end
  local claimed = redis.pcall('XAUTOCLAIM', key, 'workers', consumer, lease, start, 'COUNT', most)
  if claimed.err then
    redis.call('XGROUP', 'CREATE', key, 'workers', '0')
    claimed = {'0-0', {}}
  end
  local jobs = claimed[2]
  if #jobs < most then
    local new = redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', most - #jobs,
      'STREAMS', key, '>')
    for _, job in ipairs(new and new[1] and new[1][2] or {}) do jobs[#jobs + 1] = job end
  end
  return {claimed[1], jobs}
end

-- token. An empty stream goes whole, and with it the names of workers that are no more.
function op.done()
  redis.pcall('XACK', key, 'workers', ARGV[3])
  redis.call('XDEL', key, ARGV[3])
  if redis.call('XLEN', key) == 0 then redis.call('DEL', key) end
  return 1
end

-- token, consumer. Refused when another worker has taken the job over.
function op.extend()
  local held = redis.pcall('XPENDING', key, 'workers', ARGV[3], ARGV[3], 1)
  if held.err or #held == 0 or held[1][2] ~= ARGV[4] then return 0 end
  return #redis.call('XCLAIM', key, 'workers', ARGV[4], 0, ARGV[3], 'JUSTID')
end

-- delay in ms, the job's fields as MessagePack
function op.add()
  local delay = tonumber(ARGV[3])
  if delay > 0 then
    redis.call('ZADD', later, string.format('%.0f', millis() + delay), ARGV[4])
    redis.call('PEXPIRE', later, TTL)
  else
    redis.call('XADD', key, '*', unpack(cmsgpack.unpack(ARGV[4])))
    redis.call('PEXPIRE', key, TTL)
    wake()
  end
  return 1
end

return op[ARGV[1]]()
