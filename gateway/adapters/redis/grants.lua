-- Grants: every transition is one call of this script (APPR-8).
-- KEYS: one key of the tenant, for routing. ARGV: operation, prefix, then its own.
-- Time is the server's alone; a repeat after a lost connection finds what it did before.
--
-- Grant hash: c sealed grant · s status · p token of the pin · by token of its maker · k token of
--   its name · h token of its chain or '' · a approval that it waits for or '' · u uses so far
--   m most uses or '' · ca/ea created, expires (ms) · d why it was dropped · rv sealed revoker
local prefix = ARGV[2]
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)
local KEPT = 30 * 86400000 -- how long an ended grant can be read
local MOST = 100           -- grants of one name that are looked at
local REPEAT = 600000      -- how long the answer to a question is remembered

local function int(n) return string.format('%.0f', n) end
local function grant_key(id) return prefix .. 'grant:' .. id end

local function keep(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, int(ttl)) end
end

local function finish(id, key, status, why)
  local name = redis.call('HGET', key, 'k')
  redis.call('HSET', key, 's', status, 'd', why or '')
  redis.call('ZREM', prefix .. 'grants:for:' .. name, id)
end

local STATUS = {approve = 'approved', deny = 'denied'}

-- Whether the vote that a grant came with counts, and the approval ended by it; nil while it is open.
local function voted(approval, verdict, tokens)
  local key = prefix .. 'apr:' .. approval
  local status = redis.call('HGET', key, 's')
  if status == 'pending' then return nil end
  if status ~= STATUS[verdict] then return false end
  for token in string.gmatch(tokens, '%S+') do
    local vote = redis.call('HGET', key, 'v:' .. token)
    if vote and string.match(vote, '^%a+') == verdict then return true end
  end
  return false
end

-- Bring the status up to what time and the vote that it waits for have made of it.
local function settled(id)
  local key = grant_key(id)
  local g = redis.call('HMGET', key, 's', 'ea', 'a', 'w', 'wt')
  if g[1] ~= 'active' and g[1] ~= 'waiting' then return g[1] end
  if now >= tonumber(g[2]) then
    finish(id, key, 'expired')
    return 'expired'
  end
  if g[1] == 'waiting' then
    local counts = voted(g[3], g[4], g[5])
    if counts == nil then return 'waiting' end
    if not counts then
      finish(id, key, 'dropped', 'approval')
      return 'dropped'
    end
    redis.call('HSET', key, 's', 'active')
  end
  return 'active'
end

local function show(id)
  if not settled(id) then return false end
  return {id, redis.call('HGETALL', grant_key(id))}
end

local op = {}

-- id, sealed grant, name, pin, maker, chain or '', ttl, uses or '', approval or '', verdict that it
-- waits for or '', tokens of its maker as voter. One whose vote does not count yet is replaced.
function op.issue()
  local id, ttl = ARGV[3], tonumber(ARGV[9])
  local key = grant_key(id)
  if redis.call('EXISTS', key) == 1 then
    if settled(id) ~= 'waiting' then return show(id) end
    finish(id, key, 'dropped', 'approval')
  end
  redis.call('HSET', key, 'c', ARGV[4], 's', ARGV[12] == '' and 'active' or 'waiting',
    'k', ARGV[5], 'p', ARGV[6], 'by', ARGV[7], 'h', ARGV[8], 'a', ARGV[11], 'w', ARGV[12],
    'wt', ARGV[13], 'u', 0, 'm', ARGV[10], 'd', '', 'ca', int(now), 'ea', int(now + ttl))
  redis.call('PEXPIRE', key, int(ttl + KEPT))
  local name = prefix .. 'grants:for:' .. ARGV[5]
  redis.call('ZADD', name, int(now + ttl), id)
  keep(name, ttl)
  local all = prefix .. 'grants'
  redis.call('ZADD', all, int(micros), id)
  keep(all, ttl + KEPT)
  for _, old in ipairs(redis.call('ZRANGE', all, 0, 7)) do
    if redis.call('EXISTS', grant_key(old)) == 0 then redis.call('ZREM', all, old) end
  end
  if ARGV[8] ~= '' then
    local chain = prefix .. 'grants:of:' .. ARGV[8]
    redis.call('SADD', chain, id)
    keep(chain, ttl)
  end
  return show(id)
end

local function among(value, first, count)
  for n = first, first + count - 1 do
    if ARGV[n] == value then return true end
  end
  return false
end

-- question, asker's token, most or '', window, max ttl, max uses or '', number of excluded tokens
-- and these, tokens of each text, then for each candidate: policy, its name's tokens, its pin's.
-- Returns the grant that answers or false, those dropped, and whether people are asked too often.
function op.ask()
  local question, asker, most, window = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
  local max_ttl, max_uses, excluded = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
  local each = tonumber(ARGV[10 + excluded])
  local mark = prefix .. 'grants:use:' .. question
  local before = redis.call('GET', mark)
  if before then return {show(before), {}, 0} end
  local dropped = {}
  local function drop(id, key, why)
    finish(id, key, 'dropped', why)
    dropped[#dropped + 1] = show(id)
  end
  local function answers(id, policy, pins)
    local key = grant_key(id)
    if settled(id) ~= 'active' then return false end
    local g = redis.call('HMGET', key, 'p', 'by', 'ca', 'u', 'm')
    if not among(g[1], pins, each) then return drop(id, key, 'drift') end
    if policy == 'drop' or now >= tonumber(g[3]) + max_ttl
      or (max_uses and tonumber(g[4]) >= max_uses) then
      return drop(id, key, 'policy')
    end
    if policy == 'skip' or among(g[2], 10, excluded) then return false end
    local uses = redis.call('HINCRBY', key, 'u', 1)
    if g[5] ~= '' and uses >= tonumber(g[5]) then finish(id, key, 'used_up') end
    redis.call('SET', mark, id, 'PX', REPEAT)
    return true
  end
  for n = 11 + excluded, #ARGV, 1 + 2 * each do
    for token = n + 1, n + each do
      local name = prefix .. 'grants:for:' .. ARGV[token]
      for _, id in ipairs(redis.call('ZRANGEBYSCORE', name, int(now), '+inf', 'LIMIT', 0, MOST)) do
        if answers(id, ARGV[n], n + 1 + each) then return {show(id), dropped, 0} end
      end
    end
  end
  if not most then return {false, dropped, 0} end
  local asks = prefix .. 'asks:' .. asker
  redis.call('ZREMRANGEBYSCORE', asks, '-inf', int(now - window))
  local asked = redis.call('ZSCORE', asks, question)
  if not asked and redis.call('ZCARD', asks) >= most then return {false, dropped, 1} end
  redis.call('ZADD', asks, 'NX', int(now), question)
  redis.call('PEXPIRE', asks, int(window))
  return {false, dropped, 0}
end

function op.stands()
  local status = redis.call('HGET', grant_key(ARGV[3]), 's')
  return (status == 'active' or status == 'used_up' or status == 'expired') and 1 or 0
end

function op.get() return show(ARGV[3]) end

-- id to begin after or '', score to go on below or '', how many
function op.list()
  local all, top, most = prefix .. 'grants', '+inf', tonumber(ARGV[5])
  if ARGV[4] ~= '' then
    top = '(' .. ARGV[4]
  elseif ARGV[3] ~= '' then
    local score = redis.call('ZSCORE', all, ARGV[3])
    if not score then return {{}, false} end
    top = '(' .. score
  end
  local found = redis.call('ZREVRANGEBYSCORE', all, top, '-inf', 'WITHSCORES', 'LIMIT', 0, most)
  local page = {}
  for n = 1, #found, 2 do
    local g = show(found[n])
    if g then page[#page + 1] = g end
  end
  return {page, #found == most * 2 and found[#found] or false}
end

-- id of one whose vote did not count
function op.withdraw()
  if settled(ARGV[3]) == 'waiting' then
    finish(ARGV[3], grant_key(ARGV[3]), 'dropped', 'approval')
  end
  return 1
end

-- id, sealed revoker
function op.revoke()
  -- What was used may still wait for its dispatch: that, too, must not run any more.
  local id, status = ARGV[3], settled(ARGV[3])
  if status and status ~= 'dropped' and status ~= 'revoked' then
    finish(id, grant_key(id), 'revoked')
    redis.call('HSET', grant_key(id), 'rv', ARGV[4])
  end
  return show(id)
end

-- the tokens of the chain's id
function op.end_chain()
  local ended = {}
  for n = 3, #ARGV do
    local chain = prefix .. 'grants:of:' .. ARGV[n]
    for _, id in ipairs(redis.call('SMEMBERS', chain)) do
      local status = settled(id)
      if status == 'active' or status == 'waiting' or status == 'used_up' then
        finish(id, grant_key(id), 'dropped', 'chain')
        if status ~= 'used_up' then ended[#ended + 1] = show(id) end
      end
    end
    redis.call('DEL', chain)
  end
  return ended
end

return op[ARGV[1]]()
