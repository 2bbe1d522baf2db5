"""The scripts of `inbox`: each is one step, and safe to run twice, because an answer may be lost."""

# KEYS: inboxes, stream, then inbox, suspects and hint of each scope. ARGV: group, a hint's content and its life in ms,
# then of each scope: its name, how many entries follow, and their scores and ids. Gives how many are in each inbox, and
# whether the hint is one that this call gives: none for an inbox that is empty, because all are suspects or settled.
PUT = """
local at, found = 4, {}
for key = 3, #KEYS, 3 do
    local inbox, suspects, scope, entries = KEYS[key], KEYS[key + 1], ARGV[at], tonumber(ARGV[at + 1])
    for i = at + 2, at + 2 * entries, 2 do
        local id = ARGV[i + 1]
        if #redis.pcall('XPENDING', KEYS[2], ARGV[1], id, id, 1) > 0 and not redis.call('ZSCORE', suspects, id) then
            redis.call('ZADD', inbox, ARGV[i], id)
        end
    end
    redis.call('SADD', KEYS[1], scope)
    local waiting, wanted = redis.call('ZCARD', inbox), 0
    if waiting > 0 then
        local hint = redis.call('SET', KEYS[key + 2], ARGV[2], 'NX', 'GET', 'PX', ARGV[3])
        wanted = (not hint or hint == ARGV[2]) and 1 or 0
    end
    found[#found + 1] = {waiting, wanted}
    at = at + 2 + 2 * entries
end
return found
"""

# KEYS: stream, inboxes. ARGV: group, consumer, how many entries at most, a hint's content and its life in ms, how keys
# of inboxes and hints begin, then all scopes, of which the first is that of entries that say none of them. Reads new
# entries, which nobody can have settled, into the inboxes of their scopes. Gives them, and of each scope its name,
# whether the hint is one that this call gives, and how many are in its inbox.
RECEIVE = """
local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
if not read then return {{}, {}} end
local known, entries, of, found = {}, read[1][2], {}, {}
for i = 8, #ARGV do known[ARGV[i]] = true end
for _, entry in ipairs(entries) do
    local scope = ''
    for i = 1, #entry[2], 2 do
        if entry[2][i] == 'scope' then scope = entry[2][i + 1] end
    end
    if not known[scope] then scope = ARGV[8] end
    local ms, sequence = string.match(entry[1], '^(%d+)-(%d+)$')
    local score = string.format('%.0f', ms * 4096 + math.min(sequence, 4095))
    redis.call('ZADD', ARGV[6] .. scope, score, entry[1])
    if not of[scope] then
        of[scope] = true
        redis.call('SADD', KEYS[2], scope)
        local hint = redis.call('SET', ARGV[7] .. scope, ARGV[4], 'NX', 'GET', 'PX', ARGV[5])
        found[#found + 1] = {scope, (not hint or hint == ARGV[4]) and 1 or 0}
    end
end
for _, one in ipairs(found) do one[3] = redis.call('ZCARD', ARGV[6] .. one[1]) end
return {entries, found}
"""

# The scripts of holders have the same first keys and arguments. KEYS: fence, inbox, suspects, trying, failures, stream.
# ARGV: token.
_HOLDER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('LOCKLOST a newer holder has the scope') end
"""

# ARGV: most entries, sizes of groups of suspects as JSON. Fresh entries and suspects have their turn in the order
# in which they could have been taken: neither can keep the other waiting for ever. What is in hand was left there by a
# holder that died, and only its ids are given, unless the holder is this one, whose answer was lost.
TAKE = f"""{_HOLDER}
local in_hand = redis.call('GET', KEYS[4])
if in_hand and string.match(in_hand, '^%S+') ~= ARGV[1] then return in_hand end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local sizes = cjson.decode(ARGV[3])
local ids = redis.call('ZRANGE', KEYS[2], 0, ARGV[2] - 1)
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'WITHSCORES', 'LIMIT', 0, sizes[1])
local function attempts_of(id)
    local known, failure = pcall(cjson.decode, redis.call('HGET', KEYS[5], id) or '')
    local attempts = known and type(failure) == 'table' and tonumber(failure['attempts']) or 1
    return math.max(1, math.min(math.floor(attempts), #sizes))
end
if #due > 0 and (#ids == 0 or tonumber(due[2]) <= tonumber(string.match(ids[1], '^%d+'))) then
    ids = {{}}
    local attempts = attempts_of(due[1])
    for i = 1, #due, 2 do
        if #ids < sizes[attempts] and attempts_of(due[i]) == attempts then ids[#ids + 1] = due[i] end
    end
end
if #ids == 0 then return {{}} end
redis.call('SET', KEYS[4], ARGV[1] .. ' ' .. table.concat(ids, ' '))
local taken = {{}}
for _, id in ipairs(ids) do
    local entry = redis.call('XRANGE', KEYS[6], id, id)[1]
    local event = ''
    for i = 1, entry and #entry[2] or 0, 2 do
        if entry[2][i] == 'event' then event = entry[2][i + 1] end
    end
    taken[#taken + 1] = {{id, event, redis.call('HGET', KEYS[5], id)}}
end
return taken
"""

PUT_BACK = f"{_HOLDER} return redis.call('DEL', KEYS[4])"

# ARGV: id, failure as JSON, and time of the next try, of each entry. What was settled meanwhile has not failed.
FAIL = f"""{_HOLDER}
for i = 2, #ARGV, 3 do
    local id = ARGV[i]
    if redis.call('ZREM', KEYS[2], id) + redis.call('ZREM', KEYS[3], id) > 0 then
        redis.call('HSET', KEYS[5], id, ARGV[i + 1])
        redis.call('ZADD', KEYS[3], ARGV[i + 2], id)
    end
end
return redis.call('DEL', KEYS[4])
"""

# KEYS: dead letters, index, tally. ARGV: group, by done id what became of it as JSON, then per letter: stream id, event
# id, and the number of its field names and values, which follow. A letter is written before its entry goes: an error
# between the two, which Redis does not undo, must not lose the entry. The tally has what is acknowledged here, once.
SETTLE = f"""{_HOLDER}
local tally = {{}}
local function drop(id, fate)
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
    redis.call('HDEL', KEYS[5], id)
    tally[fate] = (tally[fate] or 0) + redis.call('XACK', KEYS[6], ARGV[2], id)
end
for id, fate in pairs(cjson.decode(ARGV[3])) do drop(id, fate) end
local i = 4
local letters = 0
while i <= #ARGV do
    local count = tonumber(ARGV[i + 2])
    if #redis.pcall('XPENDING', KEYS[6], ARGV[2], ARGV[i], ARGV[i], 1) > 0 then
        local letter = redis.call('XADD', KEYS[7], '*', unpack(ARGV, i + 3, i + 2 + count))
        if ARGV[i + 1] ~= '' then redis.call('HSET', KEYS[8], ARGV[i + 1], letter) end
        letters = letters + 1
    end
    drop(ARGV[i], 'dead')
    i = i + 3 + count
end
for fate, count in pairs(tally) do redis.call('HINCRBY', KEYS[9], fate, count) end
redis.call('DEL', KEYS[4])
return letters
"""
