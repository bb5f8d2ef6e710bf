-- Delete a turn, the index entries that still name it, its event log, and the windows of its chain
-- that were made from it (STATE-4, STATE-6).
-- A worker may be about to write it again: the mark keeps it from that for as long as the turn
-- would have been kept.
-- KEYS: turn. ARGV: prefix, turn id, chain id.
local prefix, id = ARGV[1], ARGV[2]

-- Tell whether a turn goes back to its chain's first one without the deleted turn.
local function without(turn)
  local seen = {}
  while turn and turn ~= '' do
    if turn == id or seen[turn] then return false end
    seen[turn] = true
    turn = redis.call('HGET', prefix .. 'turn:' .. turn, 'p')
  end
  return turn == ''
end

local windows = prefix .. 'windows:' .. ARGV[3]
for _, name in ipairs(redis.call('SMEMBERS', windows)) do
  if not without(string.match(name, '^(.*):[^:]*$')) then
    redis.call('DEL', prefix .. 'window:' .. name)
    redis.call('SREM', windows, name)
  end
end
local packed = redis.call('HGET', KEYS[1], 'i')
redis.call('DEL', prefix .. 'log:' .. id)
if not packed then return 0 end
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('SET', prefix .. 'gone:' .. id, '', 'PX', left) end
for _, item in ipairs(cmsgpack.unpack(packed)) do
  local entry = prefix .. 'item:' .. item
  if redis.call('GET', entry) == id then redis.call('DEL', entry) end
end
return redis.call('DEL', KEYS[1])
