-- What HAProxy calls. SETTINGS is rendered before this file, `features` stands before it too.
--   lua.elsewhere  answers whatever is not a POST to a served path, or makes the record of a stored response
--   lua.features   sets txn.f, the feature record, of what the router has not seen or not answered
--   lua.settle     gives the router's refusals to the client, and routes when the router did not answer
if not core then return features end

-- Each request leaves twice its body as garbage; a full collection for each of them is what a pause of 200 % comes to.
-- The heap without garbage is below 1 MB, so this one lets it grow to some 10 MB for each thread.
collectgarbage("incremental", 1000, 400)

local EXACT_LIMIT = 262144  -- bytes of the body that are read when the router is away
local HEADER_LIMIT = 2048   -- bytes of a header value; the router gets as many
local models = Map.new("models.map", Map._str)
local pins = Map.new("pins.map", Map._str)
local kinds = Map.new("kinds.map", Map._str)
-- HAProxy opens the maps of its expressions after it has left this file's folder: what Lua named is open by then.
Map.new("keys.map", Map._str)
Map.new("priorities.map", Map._str)
Map.new("salts.map", Map._str)

local function answer(txn, status, body, headers)
  local reply = txn:reply({status = status})
  reply:add_header("content-type", "application/json")
  reply:add_header("cache-control", "no-store")
  for name, value in pairs(headers or {}) do reply:add_header(name, value) end
  reply:set_body(body)
  txn:done(reply)
end

local function refuse(txn, code, headers)
  local e = SETTINGS.errors[code] or SETTINGS.errors.internal_error
  answer(txn, e.status, e.body, headers)
end

local function unescaped(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- path -> methods, for what is not in kinds.map
local function methods_of(path)
  if path == "/health" or path == "/v1/models" or path:find("^/v1/models/.") then return "GET, HEAD" end
  if path:find("^/v1/responses/[%w_-]+$") then return "GET" end
  if path:find("^/v1/responses/[%w_-]+/cancel$") then return "POST" end
  return kinds:lookup(path) and "POST"
end

core.register_action("elsewhere", {"http-req"}, function(txn)
  local path, method = txn.sf:path(), txn.sf:method()
  local allowed = #path <= 512 and methods_of(path)
  if not allowed then return refuse(txn, "path_not_found") end
  if not (", " .. allowed .. ","):find(" " .. method .. ",", 1, true) then
    return refuse(txn, "method_not_allowed", {allow = allowed})
  end
  if path == "/health" then return answer(txn, 200, '{"status":"ok"}') end
  if path == "/v1/models" then return answer(txn, 200, SETTINGS.model_list) end
  local name = path:match("^/v1/models/(.+)$")
  if name then
    local item = SETTINGS.models[name] or SETTINGS.models[unescaped(name)]
    if not item then return refuse(txn, "model_not_found") end
    return answer(txn, 200, item)
  end
  txn:set_var("txn.f", features.response_record(path:match("^/v1/responses/([%w_-]+)")))
end)

core.register_action("headers_too_large", {"http-req"}, function(txn) refuse(txn, "headers_too_large") end)

-- What the feature record needs of one transaction. A table for each: an action may be suspended and another one run.
local Env = {}
Env.__index = Env
function Env:hash(text) return self.c:xxh64(text, 0) end
function Env:block_hash(text) return self.c:xxh3(text, 0) end
function Env:header(name)
  local value = self.sf:req_hdr(name)
  return value ~= "" and value:sub(1, HEADER_LIMIT) or nil
end
function Env:session_keys(model)
  local keys = SETTINGS.session_keys[model]
  if keys == nil then return SETTINGS.session_keys[""] end
  return keys
end

core.register_action("features", {"http-req"}, function(txn)
  local kind = txn:get_var("txn.kind")
  if not kind then return end
  local sf = txn.sf
  local body = sf:req_body()
  local n = #body
  local announced = n
  -- Below this the buffer cannot have been full, so the body ended.
  local whole = n < SETTINGS.surely_whole
  if not whole then
    announced = txn.f:req_body_size() or n
    whole = announced == n and sf:req_hdr("content-length") ~= ""
  end
  if announced > SETTINGS.max_body_bytes then return refuse(txn, "body_too_large") end
  local env = setmetatable({c = txn.c, sf = sf}, Env)
  txn:set_var("txn.f", (features.record(body, kind, whole, announced, env)))
end)

local function route(txn, pool, server)
  txn:set_var("txn.rt.pool", pool)
  if server then txn:set_var("txn.rt.srv", server) end
end

core.register_action("settle", {"http-req"}, function(txn)
  local code = txn:get_var("txn.rt.err")
  if code then return refuse(txn, code) end
  local after = txn:get_var("txn.rt.shed")
  if after then return refuse(txn, "overloaded", {["retry-after"] = tostring(after)}) end
  local text = txn:get_var("txn.f")
  if txn:get_var("txn.rt.pool") or not text then return end
  local kind, flags, state, model, pin = features.read(text)
  local holder = pin ~= "" and pins:lookup(pin)
  if holder then
    local pool, server = holder:match("^(%S+) (%S+)$")
    return route(txn, pool, server)
  end
  if kind == features.RESPONSE then return refuse(txn, "response_not_found") end
  if state == features.AMBIGUOUS and flags & features.WHOLE ~= 0 then
    state, model = features.exact_model(txn.sf:req_body(), EXACT_LIMIT)
  end
  if state == features.SEEN then
    local pool = models:lookup(model)
    if not pool then return refuse(txn, "model_not_found") end
    return route(txn, pool)
  end
  if SETTINGS.only_pool then return route(txn, SETTINGS.only_pool) end
  if flags & features.WHOLE == 0 then return refuse(txn, "model_not_visible") end
  refuse(txn, "model_required")
end)

return features
