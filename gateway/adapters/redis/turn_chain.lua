-- Read a turn and all before it, the newest first, and let all of them live on (STATE-6).
-- KEYS: turn. ARGV: prefix, turn id, ttl in ms, the most turns, chain id, token of a model.
-- Returns the turn of the newest window ('' without one) and the window, and then id, head and
-- items of each turn that it does not stand for, in one flat list; false for a gap or a circle;
-- -1 for more turns than allowed.
-- The keys of parents and windows are not declared: they are known only here. They carry the hash
-- tag of the declared key, so that they are in its slot.
local prefix, id, ttl, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local windows = prefix .. 'windows:' .. ARGV[5]
local compacted = redis.call('PEXPIRE', windows, ttl) == 1
local found, seen, size, count = {'', ''}, {}, 2, 0
repeat
  if seen[id] then return false end
  if count == most then return -1 end
  seen[id] = true
  local key = prefix .. 'turn:' .. id
  if compacted and found[1] == '' then
    local window = prefix .. 'window:' .. id .. ':' .. ARGV[6]
    local sealed = redis.call('GET', window)
    if sealed then
      redis.call('PEXPIRE', window, ttl)
      found[1], found[2] = id, sealed
    end
  end
  local turn
  if found[1] == '' then
    turn = redis.call('HMGET', key, 'p', 'h', 'c')
    if not turn[2] then return false end
    found[size + 1], found[size + 2], found[size + 3] = id, turn[2], turn[3]
    size = size + 3
  else
    turn = redis.call('HMGET', key, 'p')
    if not turn[1] then return false end
  end
  -- The items' index entries are renewed only now and then: they are three times as many.
  if redis.call('PTTL', key) < ttl * 0.9 then
    for _, item in ipairs(cmsgpack.unpack(redis.call('HGET', key, 'i'))) do
      redis.call('PEXPIRE', prefix .. 'item:' .. item, ttl)
    end
  end
  redis.call('PEXPIRE', key, ttl)
  count, id = count + 1, turn[1]
until id == ''
return found
