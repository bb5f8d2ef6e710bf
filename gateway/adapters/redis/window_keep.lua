-- Keep what stands for a chain up to a turn, unless it is there or the chain is no more (STATE-6).
-- It must not outlive what it was made from: a deleted turn lets no window be kept (STATE-4), and
-- the turns live on with it.
-- KEYS: turn. ARGV: prefix, turn id, ttl in ms, chain id, token of the model, window, the turn
-- whose window goes ('' for none).
-- Returns the window that is kept; false when the turn or one before it is no more.
local prefix, id, ttl, token = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local seen, before = {}, id
repeat
  if seen[before] then return false end
  seen[before] = true
  local key = prefix .. 'turn:' .. before
  local parent = redis.call('HGET', key, 'p')
  if not parent then return false end
  redis.call('PEXPIRE', key, ttl)
  before = parent
until before == ''
local windows, name = prefix .. 'windows:' .. ARGV[4], id .. ':' .. token
local kept = redis.call('GET', prefix .. 'window:' .. name)
if not kept then
  kept = ARGV[6]
  redis.call('SET', prefix .. 'window:' .. name, kept, 'PX', ttl)
  redis.call('SADD', windows, name)
  redis.call('PEXPIRE', windows, ttl)
end
if ARGV[7] ~= '' then
  local old = ARGV[7] .. ':' .. token
  redis.call('DEL', prefix .. 'window:' .. old)
  redis.call('SREM', windows, old)
end
return kept
