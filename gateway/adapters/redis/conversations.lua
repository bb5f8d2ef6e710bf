-- Conversations that the gateway keeps (CHAIN-5). KEYS: the conversation's hash.
-- ARGV: operation, prefix, conversation id, ttl in ms, then its own. A repeat does no harm.
-- Hash: h sealed head · f sealed facts · k who works on it · u until when (ms) · n items ever added.
-- Beside it: `:items`, item id to sealed item; `:order`, item ids in their order; and for each item
-- `convitem:<item id>`, the conversation that had it first.
local key, prefix, id, ttl = KEYS[1], ARGV[2], ARGV[3], ARGV[4]
local items, order = key .. ':items', key .. ':order'

local function millis()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local function entry(item) return prefix .. 'convitem:' .. item end

local function live_on()
  -- The items' index entries are renewed only now and then: they are many.
  local left = redis.call('PTTL', key)
  if left >= 0 and left < ttl * 0.9 then
    for _, item in ipairs(redis.call('ZRANGE', order, 0, -1)) do
      redis.call('PEXPIRE', entry(item), ttl)
    end
  end
  for _, name in ipairs({key, items, order}) do redis.call('PEXPIRE', name, ttl) end
end

local function forget(item)
  if redis.call('GET', entry(item)) == id then redis.call('DEL', entry(item)) end
end

-- Whether somebody else works on it.
local function taken(token)
  local k = redis.call('HMGET', key, 'k', 'u')
  return k[1] and k[1] ~= token and tonumber(k[2]) > millis()
end

local function there() return redis.call('HEXISTS', key, 'h') == 1 end

local function add(from)
  for n = from, #ARGV, 2 do
    if redis.call('HSETNX', items, ARGV[n], ARGV[n + 1]) == 1 then
      redis.call('ZADD', order, redis.call('HINCRBY', key, 'n', 1), ARGV[n])
      redis.call('SET', entry(ARGV[n]), id, 'NX', 'PX', ttl)
    end
  end
end

local op = {}

-- head, then id and sealed item of each
function op.create()
  redis.call('HSET', key, 'h', ARGV[5])
  add(6)
  live_on()
  return 1
end

function op.head() return redis.call('HMGET', key, 'h', 'f') end

-- Returns id and sealed item of each, in one flat list.
function op.items()
  if not there() then return false end
  live_on()
  local ids = redis.call('ZRANGE', order, 0, -1)
  local found = {}
  for at = 1, #ids, 500 do
    local some = {unpack(ids, at, math.min(at + 499, #ids))}
    for n, sealed in ipairs(redis.call('HMGET', items, unpack(some))) do
      found[#found + 1] = some[n]
      found[#found + 1] = sealed
    end
  end
  return found
end

-- sealed head
function op.change()
  if not there() then return 0 end
  redis.call('HSET', key, 'h', ARGV[5])
  live_on()
  return 1
end

-- token, ms, the token before it or ''
function op.lock()
  if not there() then return 0 end
  if taken(ARGV[5]) and (ARGV[7] == '' or taken(ARGV[7])) then return -1 end
  redis.call('HSET', key, 'k', ARGV[5], 'u', string.format('%.0f', millis() + ARGV[6]))
  live_on()
  return 1
end

-- token
function op.unlock()
  if redis.call('HGET', key, 'k') == ARGV[5] then redis.call('HDEL', key, 'k', 'u') end
  return 1
end

-- Whether a writer that needs a claim on a batch has lost it.
local function lost(batch, fence)
  if batch == '' then return false end
  local b = redis.call('HMGET', prefix .. 'batch:' .. batch, 's', 'f')
  return (b[1] ~= 'claimed' and b[1] ~= 'dispatched') or b[2] ~= fence
end

-- token or '', sealed facts or '', the batch that the writer must hold or '', the fence, then id and
-- sealed item of each. Whoever works on it is done.
function op.append()
  if not there() or lost(ARGV[7], ARGV[8]) then return 0 end
  if taken(ARGV[5]) then return -1 end
  if ARGV[6] ~= '' then redis.call('HSET', key, 'f', ARGV[6]) end
  add(9)
  redis.call('HDEL', key, 'k', 'u')
  live_on()
  return 1
end

-- token or '', item id
function op.remove()
  if taken(ARGV[5]) then return -1 end
  redis.call('ZREM', order, ARGV[6])
  forget(ARGV[6])
  return redis.call('HDEL', items, ARGV[6])
end

function op.delete()
  for _, item in ipairs(redis.call('ZRANGE', order, 0, -1)) do forget(item) end
  return redis.call('DEL', key, items, order)
end

return op[ARGV[1]]()
