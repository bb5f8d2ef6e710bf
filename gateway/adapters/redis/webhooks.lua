-- Events for webhooks (APPR-9). KEYS: one key of the tenant, for routing.
-- ARGV: operation, prefix, tenant, then its own. Time is the server's alone.
--
-- Event hash: e type · o occurred at (s) · d sealed data
local prefix, tenant = ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local JOBS_TTL = 35 * 86400000

local function int(n) return string.format('%.0f', n) end
local function evt(id) return prefix .. 'evt:' .. id end

local function publish(text) redis.call('PUBLISH', 'gw:wake', text) end

local op = {}

-- event id, type, subject, sealed data. The same event again changes nothing.
function op.emit()
  local id, key, jobs = ARGV[4], evt(ARGV[4]), prefix .. 'jobs'
  if redis.call('EXISTS', key) == 1 then return 0 end
  local at = string.format('%.3f', now / 1000)
  redis.call('HSET', key, 'e', ARGV[5], 'o', at, 'd', ARGV[7])
  redis.call('PEXPIRE', key, int(JOBS_TTL))
  redis.call('XADD', jobs, '*', 'o', at, 'k', 'webhook', 's', ARGV[6], 'e', ARGV[5], 'i', id)
  redis.call('PEXPIRE', jobs, int(JOBS_TTL))
  publish('jobs:' .. tenant)
  return 1
end

return op[ARGV[1]]()
