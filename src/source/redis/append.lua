-- Appends events to the stream KEYS[1], each id once.
--
-- ARGV[1]    the entry up to which the caller knows the ids of all events
-- ARGV[2]    the most entries after that one to read here
-- ARGV[3..]  one event each, as texts with their lengths before them (`5:hello`): the entry that may be this event
--            already (or nothing), then names and values of its fields; the first two are `id` and the event's id
--
-- Returns one of
--   {'rewound'}                             the stream ends before ARGV[1]
--   {'unread', ids}                         there are more than ARGV[2] entries after it; nothing was appended
--   {'appended', ids, added, result ...}    `added` is the number of entries ever added before, or -1
-- where `ids` are those of the entries that were read here and of their events, in turn, and each result is the id of a
-- new entry, or the stored entry that is this event already, or the number of the event above that has the same id.

local stream, known_up_to, max_unread = KEYS[1], ARGV[1], tonumber(ARGV[2])

local function field(entry, name)
    local fields = entry[2]
    for at = 1, #fields, 2 do
        if fields[at] == name then
            return fields[at + 1] ~= '' and fields[at + 1] or nil
        end
    end
end

local function event_id(entry)
    return field(entry, 'id') or entry[1]
end

local function is_smaller(a, b)
    return #a < #b or (#a == #b and a < b)
end

local function is_before(a, b)
    local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
    local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
    return is_smaller(a_ms, b_ms) or (a_ms == b_ms and is_smaller(a_seq, b_seq))
end

local function texts_of(event)
    local texts, at = {}, 1
    while at <= #event do
        local colon = string.find(event, ':', at, true)
        local length = tonumber(string.sub(event, at, colon - 1))
        texts[#texts + 1] = string.sub(event, colon + 1, colon + length)
        at = colon + length + 1
    end
    return texts
end

local last, added = '0-0', 0
if redis.call('EXISTS', stream) == 1 then
    local info = redis.call('XINFO', 'STREAM', stream)
    added = -1
    for at = 1, #info, 2 do
        if info[at] == 'last-generated-id' then last = info[at + 1] end
        if info[at] == 'entries-added' then added = info[at + 1] end
    end
end
if is_before(last, known_up_to) then return {'rewound'} end

-- by event id: false, then the entry that has it, or the number of the first event above with it
local found, events = {}, {}
for at = 3, #ARGV do
    local texts = texts_of(ARGV[at])
    events[#events + 1] = texts
    found[texts[3]] = false
end
for _, texts in ipairs(events) do
    if texts[1] ~= '' and not found[texts[3]] then
        local entry = redis.call('XRANGE', stream, texts[1], texts[1])[1]
        if entry and event_id(entry) == texts[3] then found[texts[3]] = entry end
    end
end

local ids, after = {}, known_up_to
while after ~= last do
    local entries = redis.call('XRANGE', stream, '(' .. after, '+', 'COUNT', 64)
    for _, entry in ipairs(entries) do
        local id = event_id(entry)
        ids[#ids + 1] = entry[1]
        ids[#ids + 1] = id
        if found[id] == false then found[id] = entry end
    end
    if #entries < 64 then break end
    after = entries[#entries][1]
    if #ids >= 2 * max_unread and after ~= last then return {'unread', ids} end
end

local results = {'appended', ids, added}
for number, texts in ipairs(events) do
    local result = found[texts[3]]
    if not result then
        result = redis.call('XADD', stream, '*', unpack(texts, 2))
        found[texts[3]] = number
    end
    results[#results + 1] = result
end
return results
