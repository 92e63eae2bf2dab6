-- The feature record of docs/contracts.md, made from the buffered body. Pure: HAProxy is reached through `env` only.
-- Only plain searches run over more than a few hundred bytes: a Lua pattern over 100 KB stalls every stream of the thread.
local find, sub, byte, match, pack, unpack = string.find, string.sub, string.byte, string.match, string.pack, table.unpack

local BLOCK = 4096          -- bytes of the prompt under one hash
local HASHED = 131072       -- bytes of the body within which blocks are hashed
local WINDOW = 4096         -- bytes at each end of the body that are read as JSON
local TOKENS_WINDOW = 512   -- bytes at each end of the body in which the answer's length is looked for
local MAX_OCCURRENCES = 8   -- of one word; a body with more is left to the exact reader
local MAX_VALUE = 255       -- bytes of a string in the record
local MAX_SPACE = 64        -- bytes of white space around a key that are skipped
local MAX_FORM_HEAD = 256   -- bytes of a form part's head
local U32 = 0xFFFFFFFF
local FORM_KINDS = {[10] = true, [11] = true}
local GENERATING = {[1] = true, [2] = true, [3] = true, [4] = true}
local RESPONSES, RESPONSE = 3, 14
local NOT_SEEN, SEEN, AMBIGUOUS = 0, 1, 2
local WHOLE, FORM, EMPTY, NOT_AN_OBJECT = 1, 2, 4, 8
local HASH_FORMAT = {}
for n = 1, HASHED // BLOCK + 1 do HASH_FORMAT[n] = "<" .. ("i8"):rep(n) end

-- Return where the string that opens at `i` ends, or nil when it does not end before `last`.
local function string_end(b, i, last)
  local q = i
  while true do
    q = find(b, '"', q + 1, true)
    if not q or q > last then return nil end
    local k = q - 1
    while byte(b, k) == 92 do k = k - 1 end
    if (q - k) % 2 == 1 then return q end
  end
end

-- Return how much deeper the JSON is nested after `text` than before it; nil when a string is open there.
local function depth_change(text)
  local depth, i, last = 0, 1, #text
  while true do
    local at = find(text, '["{}%[%]]', i)
    if not at then return depth end
    local c = byte(text, at)
    if c == 34 then
      at = string_end(text, at, last)
      if not at then return nil end
    elseif c == 123 or c == 91 then depth = depth + 1
    else depth = depth - 1 end
    i = at + 1
  end
end

-- Whether the key at `i` belongs to the outermost object; nil when it is too deep inside to tell.
-- The first two answers, for the first key of all and for one after which nothing is nested, are nearly all there are.
local function is_top_level(b, n, i, whole)
  if i == 2 and byte(b, 1) == 123 then return true end
  local in_tail = whole and n - i < WINDOW
  if in_tail then
    local closing = find(b, "[%[%]{}\\]", i)
    if closing and byte(b, closing) == 125 and (closing == n or not find(b, "%S", closing + 1)) then return true end
  end
  if i <= WINDOW and (not in_tail or i <= n - i) then
    local head = sub(b, 1, i - 1)
    if byte(head, find(head, "%S") or 1) ~= 123 then return false end
    local change = depth_change(head)
    return change and change == 1
  end
  if not in_tail then return nil end
  local change = depth_change(sub(b, i))
  return change and change == -1
end

-- Whether the word that `b` has between quotes at `i` is the key of a member.
local function is_key(b, i, after)
  local before = byte(b, i - 1)
  if before ~= 123 and before ~= 44 then
    before = match(sub(b, i > MAX_SPACE and i - MAX_SPACE or 1, i - 1), "([^ \t\r\n])[ \t\r\n]*$")
    if before ~= "{" and before ~= "," then return before == nil and i > MAX_SPACE and nil end
  end
  if byte(b, after) == 58 then return true end
  local colon = match(sub(b, after, after + MAX_SPACE), "^[ \t\r\n]*(.?)")
  if colon == "" then return nil end
  return colon == ":"
end

-- Find the member of the outermost object that is named by `quoted` (quotes included).
-- Return its state, and where its key ends when it was seen. Exact for every valid JSON text whose keys are written
-- without escapes; more than one such key anywhere is ambiguous.
local function member(b, n, quoted, whole)
  local key, at = nil, 1
  for _ = 1, MAX_OCCURRENCES do
    local i, j = find(b, quoted, at, true)
    if not i then
      if not key then return NOT_SEEN end
      local top = is_top_level(b, n, key, whole)
      if top == nil then return AMBIGUOUS end
      if top then return SEEN, key + #quoted end
      return NOT_SEEN
    end
    local is = is_key(b, i, j + 1)
    if is == nil or (is and key) then return AMBIGUOUS end
    if is then key = i end
    at = j
  end
  return AMBIGUOUS
end

-- Return the string that follows the key that ends before `i`, as it is written; nil when it is none or too long.
local function string_value(b, i)
  return match(sub(b, i, i + MAX_VALUE + 2 * MAX_SPACE), '^[ \t\r\n]*:[ \t\r\n]*"([^"]*)"')
end

local function model_of_object(b, n, whole)
  local state, after = member(b, n, '"model"', whole)
  if state == AMBIGUOUS then return state, "", nil end
  -- Every letter of "model" is \u006x when it is escaped.
  if find(b, "\\u006", 1, true) then return AMBIGUOUS, "", nil end
  if state == NOT_SEEN then return state, "", nil end
  local value = string_value(b, after)
  if not value or #value > MAX_VALUE or find(value, "\\", 1, true) then return AMBIGUOUS, "", nil end
  return SEEN, value, after
end

-- The field `model` of a multipart form (RFC 7578). `boundary` is from the Content-Type header.
local function model_of_form(b, boundary)
  local i, j = find(b, 'name="model"', 1, true)
  if not i then
    -- Other ways to write the same field are left to the exact reader.
    if find(b, "name=model", 1, true) or find(b, "name*=", 1, true) then return AMBIGUOUS, "" end
    return NOT_SEEN, ""
  end
  if not boundary or find(b, 'name="model"', j, true) then return AMBIGUOUS, "" end
  local delimiter = "--" .. boundary .. "\r\n"
  local head = match(sub(b, i > MAX_FORM_HEAD and i - MAX_FORM_HEAD or 1, i - 1), "^(.*)[Cc]ontent%-[Dd]isposition: *form%-data; *$")
  if not head or sub(head, -#delimiter) ~= delimiter then return AMBIGUOUS, "" end
  local value, close = match(sub(b, j + 1, j + MAX_FORM_HEAD + MAX_VALUE), "^\r\n\r\n([^\r\n]+)\r\n()")
  if not value or sub(b, j + close, j + close + 1 + #boundary) ~= "--" .. boundary then return AMBIGUOUS, "" end
  return SEEN, value
end

-- Return where the first of "messages", "prompt" and "input" begins within the first 128 KiB; nil when none does.
local function prompt_start(b, n)
  local head = n > HASHED and sub(b, 1, HASHED) or b
  local first = find(head, '"messages"', 1, true)
  if first then head = sub(head, 1, first) end
  local other = find(head, '"prompt"', 1, true)
  if other then first, head = other, sub(head, 1, other) end
  return find(head, '"input"', 1, true) or first
end

local function block_hashes(b, n, from, env)
  local last = n < HASHED and n or HASHED
  if last - from < BLOCK then return pack("<i8", env:block_hash(sub(b, from, last))) end
  local values, count = {}, 0
  for i = from, last, BLOCK do
    local stop = i + BLOCK - 1
    count = count + 1
    values[count] = env:block_hash(sub(b, i, stop < last and stop or last))
  end
  return pack(HASH_FORMAT[count], unpack(values, 1, count))
end

local function tokens_at(text)
  local value = match(text, '^"max_tokens"%s*:%s*(%d+)') or match(text, '^"max_completion_tokens"%s*:%s*(%d+)')
  value = value and tonumber(value)
  return value and math.type(value) == "integer" and value <= U32 and value or 0
end

-- The answer's length that the client asks for, when it stands near the body's end or before the prompt and nothing is
-- nested between; else 0.
local function max_tokens(b, n, prompt, whole)
  local i = whole and find(b, '"max_', n > TOKENS_WINDOW and n - TOKENS_WINDOW or 1, true)
  if i and i > prompt then
    local text = sub(b, i)
    local nested = find(text, "[%[%]{}]")
    return nested and not find(text, "%S", nested + 1) and tokens_at(text) or 0
  end
  if prompt < 3 or prompt > TOKENS_WINDOW then return 0 end
  local head = sub(b, 1, prompt)
  i = find(head, '"max_', 1, true)
  return i and not find(head, "[%[%]{}]", 2) and byte(head, 1) == 123 and tokens_at(sub(head, i)) or 0
end

-- Return `<name>=<value>` of the first of `keys` that the request has. A long value is told by its hash.
local function session_of(b, n, keys, whole, env)
  for _, key in ipairs(keys) do
    local value
    if key.header then
      value = env:header(key.name)
    elseif n > 0 then
      local state, after = member(b, n, '"' .. key.name .. '"', whole)
      value = state == SEEN and string_value(b, after)
    end
    if value and value ~= "" then
      local text = key.name .. "=" .. value
      if #text <= MAX_VALUE then return text end
      return key.name .. "=#" .. ("%016x"):format(env:hash(value))
    end
  end
  return ""
end

local function pin_in_body(b, n, whole)
  local state, after = member(b, n, '"previous_response_id"', whole)
  local value = state == SEEN and string_value(b, after)
  return value and match(value, "^resp_(%x%x%x%x%x%x%x%x)_") or ""
end

local function shape_flags(b, n, whole)
  if n == 0 then return EMPTY | WHOLE end
  if not whole then return 0 end
  if byte(b, 1) == 123 and byte(b, n) == 125 then return WHOLE end
  local first, last = match(sub(b, 1, MAX_SPACE), "[^ \t\r\n]"), match(sub(b, -MAX_SPACE), "([^ \t\r\n])[ \t\r\n]*$")
  if first == "{" and last == "}" then return WHOLE end
  return WHOLE | NOT_AN_OBJECT
end

local function written(kind, flags, state, body_bytes, prompt_bytes, tokens, model, session, pin, hashes)
  if body_bytes > U32 then body_bytes = U32 end
  if #model > MAX_VALUE then model = sub(model, 1, MAX_VALUE) end
  return pack("<BBBBI4I4I4s1s1s1", 1, kind, flags, state, body_bytes, prompt_bytes, tokens, model, session, pin) .. hashes
end

-- Return the record, and the model's state.
--   b: the buffered body; whole: whether that is all of it; body_bytes: its announced length
--   env: methods block_hash(string) -> integer (xxh3), hash(string) -> integer (xxh64), header(name) -> string or nil,
--     session_keys(model) -> list or nil
local function record(b, kind, whole, body_bytes, env)
  local n = #b
  local form = FORM_KINDS[kind] and match(env:header("content-type") or "", "^[Mm]ultipart/form%-data;.*boundary=\"?([^\";,]+)")
  local flags = shape_flags(b, n, whole)
  if form then flags = flags & ~NOT_AN_OBJECT | FORM end
  local state, model = NOT_SEEN, ""
  if n > 0 then
    if form then state, model = model_of_form(b, form)
    else state, model = model_of_object(b, n, whole) end
  end
  if state ~= SEEN then
    local named = env:header("x-slipstream-model")
    if named and named ~= "" then state, model = SEEN, named end
  end
  local keys = env:session_keys(model)
  local session = keys and session_of(b, form and 0 or n, keys, whole, env) or ""
  local pin = kind == RESPONSES and n > 0 and pin_in_body(b, n, whole) or ""
  local prompt = not form and n > 0 and prompt_start(b, n)
  if not prompt then return written(kind, flags, state, body_bytes, 0, 0, model, session, pin, ""), state end
  local tokens = GENERATING[kind] and max_tokens(b, n, prompt, whole) or 0
  return written(kind, flags, state, body_bytes, n - prompt + 1, tokens, model, session, pin,
    block_hashes(b, n, prompt, env)), state
end

-- The record of a request for a stored response: nothing but its pin.
local function response_record(id)
  local pin = match(id, "^resp_(%x%x%x%x%x%x%x%x)_") or ""
  return written(RESPONSE, EMPTY | WHOLE, NOT_SEEN, 0, 0, 0, "", "", pin, "")
end

-- Return kind, flags, model state, model and pin of a record.
local function read(text)
  local _, kind, flags, state, _, _, _, model, _, pin = string.unpack("<BBBBI4I4I4s1s1s1", text)
  return kind, flags, state, model, pin
end

-- Read the outermost object's "model" exactly, from the start; for when there is no router to ask.
-- Return state and value. Looks at `limit` bytes at most.
local function exact_model(b, limit)
  local depth, i, state, model = 0, 1, NOT_SEEN, ""
  local cut = #b > limit
  if cut then b = sub(b, 1, limit) end
  local last = #b
  while true do
    local at = find(b, '["{}%[%]]', i)
    if not at then return cut and AMBIGUOUS or state, model end
    local c = byte(b, at)
    if c == 34 then
      local stop = string_end(b, at, last)
      if not stop then return AMBIGUOUS, "" end
      if depth == 1 and stop - at == 6 and sub(b, at, stop) == '"model"' and is_key(b, at, stop + 1) then
        local value = string_value(b, stop + 1)
        if not value or find(value, "\\", 1, true) then return AMBIGUOUS, "" end
        state, model = SEEN, value
      end
      at = stop
    elseif c == 123 or c == 91 then depth = depth + 1
    else depth = depth - 1 end
    i = at + 1
  end
end

local features = {
  record = record, response_record = response_record, read = read, exact_model = exact_model,
  NOT_SEEN = NOT_SEEN, SEEN = SEEN, AMBIGUOUS = AMBIGUOUS, WHOLE = WHOLE, RESPONSE = RESPONSE,
}
