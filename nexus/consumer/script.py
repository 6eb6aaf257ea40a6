"""The one Redis script of the consumer: a batch of one partition, judged and remembered at once.

What it changes (hit counts, blocks, windows), how far it has come (``mark``) and which ids it has
seen change together or not at all, so nothing is applied twice however often a consumer dies. A
verdict stays in the outbox until Kafka has its action and the offset behind it: a batch that is
read again gets the same verdicts again.

Everything is read and judged before the first write, because Redis does not take back what a script
wrote before it failed.
"""

from __future__ import annotations

from typing import Final

__all__ = ["APPLY", "CIRCUIT", "DUPLICATE", "REPEATED", "SPIKE", "BLOCK"]  # noqa: RUF022

#: Answers for one event; an event that is new and leads to nothing has none.
REPEATED: Final = 1
DUPLICATE: Final = 2
BLOCK: Final = 3
SPIKE: Final = 4
CIRCUIT: Final = 5

# KEYS  mark, outbox, ids, older ids, replayed positions
# ARGV  MessagePack: kind; committed (offset); remembered (ids); prefix of keys; block and spike
#       settings; events {offset, id, subject, number, origin mark, origin offset, origin dead}
# Reply MessagePack: {now_ms, {{index from 0, answer, verdict…}, …}}
APPLY: Final = """
local a = cmsgpack.unpack(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local events = a.events
local mark = tonumber(redis.call('GET', KEYS[1]) or '-1')
local answers, verdicts, fresh, ids = {}, {}, {}, {}

local stored = {}
if events[1][1] < mark then
  local members = redis.call('ZRANGEBYSCORE', KEYS[2], events[1][1], events[#events][1])
  for _, member in ipairs(members) do
    local verdict = cmsgpack.unpack(member)
    stored[verdict[1]] = verdict
  end
end

local candidates, names = {}, {}
for i, e in ipairs(events) do
  if e[1] < mark then
    local verdict = stored[e[1]]
    if verdict then
      answers[#answers + 1] = {i - 1, verdict[2], verdict[3], verdict[4], verdict[5]}
    else
      answers[#answers + 1] = {i - 1, 1}
    end
  else
    candidates[#candidates + 1] = i
    names[#names + 1] = e[2]
  end
end

local replayed = {}
if #names > 0 then
  local seen = redis.call('SMISMEMBER', KEYS[3], unpack(names))
  local older = redis.call('SMISMEMBER', KEYS[4], unpack(names))
  local here = {}
  for n, i in ipairs(candidates) do
    local e = events[i]
    local known = seen[n] == 1 or older[n] == 1 or here[e[2]]
    if not known and e[5] ~= '' then
      if e[7] then
        local position = e[5] .. '@' .. e[6]
        known = redis.call('SISMEMBER', KEYS[5], position) == 1
        replayed[#replayed + 1] = position
      else
        known = e[6] < tonumber(redis.call('GET', e[5]) or '-1')
      end
    end
    if known then
      answers[#answers + 1] = {i - 1, 2}
    else
      here[e[2]] = true
      ids[#ids + 1] = e[2]
      fresh[#fresh + 1] = i
    end
  end
end

local function decide(i, answer, x, y)
  verdicts[#verdicts + 1] = {events[i][1], answer, now, x, y}
  answers[#answers + 1] = {i - 1, answer, now, x, y}
end

local hits, blocked, blocks, windows = {}, {}, {}, {}
if a.kind == 'hit' then
  for _, i in ipairs(fresh) do
    local e = events[i]
    local s = e[3]
    if s ~= '' then
      if blocked[s] == nil then
        blocked[s] = redis.call('EXISTS', a.block_prefix .. s) == 1
        local raw = redis.call('GET', a.prefix .. 'hits:' .. s)
        hits[s] = raw and cmsgpack.unpack(raw) or {}
      end
      if not blocked[s] then
        local h = hits[s]
        h[#h + 1] = e[4]
        table.sort(h)
        while #h > a.hits do table.remove(h, 1) end
        if #h == a.hits and h[#h] - h[1] <= a.window_ms then
          -- Counted from the last hit: a block that is over by now is none.
          local ttl = math.floor(a.block_ms - math.max(0, now - h[#h]))
          hits[s] = {}
          if ttl > 0 then
            blocked[s] = true
            blocks[#blocks + 1] = {s, ttl, e[2]}
            decide(i, 3, a.hits, ttl)
          end
        end
      end
    end
  end
elseif a.kind == 'completed' then
  for _, i in ipairs(fresh) do
    local route, value = events[i][3], events[i][4]
    local w = windows[route]
    if not w then
      local raw = redis.call('GET', a.prefix .. 'route:' .. route)
      w = raw and cmsgpack.unpack(raw) or {0}
      -- {next place from 1, values…}; another size begins anew
      if #w - 1 > a.samples then w = {0} end
      w.sum = 0
      for n = 2, #w do w.sum = w.sum + w[n] end
      windows[route] = w
    end
    local count = #w - 1
    if count >= a.min_samples and value >= a.floor_ms and value > a.factor * w.sum / count then
      -- As text: MessagePack of Redis keeps floats, but whole numbers come back as integers.
      decide(i, 4, string.format('%.6f', w.sum / count), count)
    end
    if count < a.samples then
      w[#w + 1] = value
      w.sum = w.sum + value
    else
      local at = w[1] % a.samples + 1
      w.sum = w.sum + value - w[at + 1]
      w[at + 1] = value
      w[1] = at
    end
  end
else
  for _, i in ipairs(fresh) do decide(i, 5, 0, 0) end
end

redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. a.committed)
for s, h in pairs(hits) do
  if #h == 0 then
    redis.call('DEL', a.prefix .. 'hits:' .. s)
  else
    redis.call('SET', a.prefix .. 'hits:' .. s, cmsgpack.pack(h), 'PX', a.window_ms)
  end
end
for _, b in ipairs(blocks) do
  redis.call('SET', a.block_prefix .. b[1], cjson.encode({
    by = 'auto', reason = 'rate_limit', hits = a.hits, eventId = b[3], sinceMs = now
  }), 'PX', b[2])
  redis.call('ZREMRANGEBYSCORE', a.block_index, '-inf', now)
  redis.call('ZADD', a.block_index, now + b[2], b[1])
  redis.call('PUBLISH', a.channel, b[1])
end
for route, w in pairs(windows) do
  w.sum = nil
  redis.call('SET', a.prefix .. 'route:' .. route, cmsgpack.pack(w), 'PX', 86400000)
end
for _, verdict in ipairs(verdicts) do
  redis.call('ZADD', KEYS[2], verdict[1], cmsgpack.pack(verdict))
end
if #replayed > 0 then
  redis.call('SADD', KEYS[5], unpack(replayed))
  redis.call('EXPIRE', KEYS[5], 2592000)
end
if #ids > 0 then
  if redis.call('SCARD', KEYS[3]) >= a.remembered then
    redis.call('UNLINK', KEYS[4])
    redis.call('RENAME', KEYS[3], KEYS[4])
  end
  redis.call('SADD', KEYS[3], unpack(ids))
end
local behind = events[#events][1] + 1
if behind > mark then redis.call('SET', KEYS[1], string.format('%.0f', behind)) end
return cmsgpack.pack({now, answers})
"""
