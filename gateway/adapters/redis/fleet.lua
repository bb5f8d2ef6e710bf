-- The live replicas and the version that each has. KEYS: fleet. ARGV: member, then for how long in
-- ms it lives (0: it leaves), or nothing: tell who lives. A member is "<version> <replica>".
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
elseif ARGV[2] then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 3600000)
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
