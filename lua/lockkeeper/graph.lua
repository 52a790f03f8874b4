--- Who waits for whom: lock.graph, the wait-for graph of one snapshot.
--
-- It is worked out here from what pg_locks shows (src/locks/graph.h says how, and when the server is asked
-- again). A graph can also be made of rows of lock.locks that were saved: graph.of_rows.
--
-- The members of a parallel group are one node, the leader's.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"
local described = require "lockkeeper.report.object"
local field = require "lockkeeper.report.field"
local query = require "lockkeeper.query"
local safe = require "lockkeeper.report.safe"

local json = core.json

local graph = {}

---@alias BlockerClass
---| "client" | "idle_in_transaction" | "autovacuum" | "autovacuum_wraparound" | "walsender"
---| "parallel_worker" | "prepared" | "background" | "unknown"

---@class GraphNode
---@field pid? integer        nil: a prepared transaction
---@field gid? string         a prepared transaction's name
---@field class BlockerClass
---@field activity Activity
---@field behind integer      how many wait for it, also through others
---@field weight number       seconds that these have waited, together
---@field waited? number      seconds that it has waited; nil: it does not wait, or that is not known
---@field waits_for? string   "ACCESS EXCLUSIVE public.orders"; nil: it does not wait
---@field in_cycle boolean    whether it waits for itself through others

---@class GraphEdge
---@field waiter_pid integer
---@field blocker_pid? integer      a parallel worker's leader's, as in pg_blocking_pids; nil: prepared
---@field blocker_gid? string       a prepared transaction's name
---@field blocker_class BlockerClass
---@field lock LockRow              what is waited for, as the waiter's row of lock.locks
---@field requested_mode string
---@field held_mode? string         the strongest in the way; nil where the blocker is only queued before
---@field waited? number            seconds; nil where it is not known
---@field certainty "hard"|"soft"|"confirmed"   held; queued before; as the server said, when asked again

---@class GraphEntry : GraphNode    in a tree
---@field edge? GraphEdge           why it stands below its parent; nil at the top
---@field children GraphEntry[]
---@field also GraphNode[]          who else holds what it waits for
---@field again? boolean            shown in full elsewhere: it waits for its parent here too
---@field closes? boolean           with `again`: its parent waits for it, which closes a cycle
---@field cycle? GraphNode[]        at the top of a tree that has no root: who wait for each other

---@class Graph
---@field taken_at number           epoch seconds by the server's clock
local methods = {}

local CERTAINTY = { [0] = "hard", "soft", "confirmed" }

local FIELDS_AN_EDGE = 5

---------------------------------------------------------------------------------------------------
-- nodes

local BACKENDS = {
  ["autovacuum worker"] = "autovacuum",
  ["walsender"] = "walsender",
  ["parallel worker"] = "parallel_worker",
}

--- What kind of blocker somebody is, by its activity.
---@param activity Activity
---@return BlockerClass
function graph.class_of(activity)
  if activity.gid or activity.state == "prepared" then
    return "prepared"
  end
  local kind = activity.backend_type
  if not kind or activity.hidden then
    return "unknown"
  elseif kind == "client backend" then
    return (activity.state or ""):find("^idle in transaction") and "idle_in_transaction" or "client"
  elseif kind == "autovacuum worker" and (activity.query or ""):find("(to prevent wraparound)", 1, true) then
    return "autovacuum_wraparound"
  end
  return BACKENDS[kind] or "background"
end

-- A node of a party; what it waits for is filled in later.
local function new_node(party)
  local activity = party.activity
  return {
    pid = party.pid, gid = activity.gid, activity = activity, class = graph.class_of(activity),
    behind = party.behind, weight = party.weight, in_cycle = party.in_cycle,
  }
end

-- "SHARE transaction 771: row (0,5) of public.orders", where the waiter holds the place in the row's queue.
local function waits_text(lock, tuple)
  local text = lock.mode .. " " .. described(lock)
  return tuple and lock.type == "transactionid" and text .. ": " .. described(tuple) or text
end

---@class GraphSource
---@field core userdata
---@field taken_at number
---@field activity_of? fun(place: integer): Activity  where the core does not know it
---@field rows_at fun(numbers: integer[]): LockRow[]   rows by their numbers
---@field tuples? fun(): table<integer, integer>  by place: the number of the row lock that a waiter holds

local function by_weight(a, b)
  if a.weight ~= b.weight then
    return a.weight > b.weight
  elseif a.behind ~= b.behind then
    return a.behind > b.behind
  elseif a.pid and b.pid then
    return a.pid < b.pid
  end
  return a.pid ~= nil or b.pid == nil and (a.gid or "") < (b.gid or "")
end

-- Distinct numbers of the lock rows that edges and waiters need, and the place of each among them.
local function numbers_of(flat, tuples)
  local numbers, places = {}, {}
  local function want(number)
    if number and number >= 0 and not places[number] then
      numbers[#numbers + 1] = number
      places[number] = #numbers
    end
  end
  for i = 1, #flat, FIELDS_AN_EDGE do
    want(flat[i + 2])
    want(flat[i + 3])
  end
  for _, number in pairs(tuples) do
    want(number)
  end
  return numbers, places
end

-- These rows, fetched at once: a function of the number.
local function rows_of(source, flat, tuples)
  local numbers, places = numbers_of(flat, tuples)
  local rows = source.rows_at(numbers)
  return function(number) return rows[places[number]] end
end

-- What a graph's methods need to know of it.
---@class GraphState
---@field flat integer[]       edges, see graph_edges in src/bind/graph.c; parties are known by their places
---@field row fun(number: integer): LockRow
---@field list GraphNode[]     the heaviest first
---@field nodes table<integer, GraphNode>       of leaders
---@field leaders table<integer, integer>
---@field components table<integer, integer>    who wait for each other have the same
---@field pids table<integer, integer>
---@field classes table<integer, BlockerClass>
local states = setmetatable({}, { __mode = "k" })

local GRAPH = {
  __name = "lockkeeper.Graph",
  __index = methods,
  __tostring = function(self)
    return ("lockkeeper.Graph (%d sessions)"):format(#states[self].list)
  end,
}

---@param source GraphSource
---@return Graph
local function new(source)
  core.graph_settle(source.core, source.taken_at)
  local parties, flat = core.graph_parties(source.core), core.graph_edges(source.core)
  local tuples = source.tuples and source.tuples() or {}
  local state = { flat = flat, row = rows_of(source, flat, tuples), list = {}, nodes = {}, leaders = {},
    components = {}, pids = {}, classes = {} }
  for place, party in pairs(parties) do
    party.activity = party.activity or source.activity_of(place)
    state.leaders[place], state.components[place] = party.leader, party.component
    state.pids[place] = party.pid
    state.classes[place] = graph.class_of(party.activity)
    if party.leader == place then
      state.nodes[place] = new_node(party)
      state.list[#state.list + 1] = state.nodes[place]
    end
  end
  for i = 1, #flat, FIELDS_AN_EDGE do
    local waiter, lock = flat[i], state.row(flat[i + 2])
    local node = state.nodes[state.leaders[waiter]]
    if not node.waits_for then
      node.waits_for = waits_text(lock, tuples[waiter] and state.row(tuples[waiter]))
      node.waited = lock.wait_duration
    end
  end
  table.sort(state.list, by_weight)
  local self = setmetatable({ taken_at = source.taken_at }, GRAPH)
  states[self] = state
  return self
end

---------------------------------------------------------------------------------------------------
-- methods

-- Which member of the blocker's group holds it: its class is what matters.
local function edge_class(state, blocker, held)
  if held and held.pid ~= state.pids[blocker] and held.activity then
    return graph.class_of(held.activity)
  end
  return state.classes[blocker]
end

local function edge_at(state, i)
  local flat = state.flat
  local waiter, blocker = flat[i], flat[i + 1]
  local lock, held = state.row(flat[i + 2]), flat[i + 3] >= 0 and state.row(flat[i + 3]) or nil
  local node = state.nodes[state.leaders[blocker]]
  return {
    waiter_pid = state.pids[waiter], blocker_pid = state.pids[blocker], blocker_gid = node.gid,
    blocker_class = edge_class(state, blocker, held), lock = lock, requested_mode = lock.mode,
    held_mode = held and held.mode, waited = lock.wait_duration, certainty = CERTAINTY[flat[i + 4]],
  }
end

--- Who waits for whom: one edge a waiter and blocker.
---@return GraphEdge[]
function methods:edges()
  local state, edges = states[self], {}
  for i = 1, #state.flat, FIELDS_AN_EDGE do
    edges[#edges + 1] = edge_at(state, i)
  end
  return edges
end

--- Everybody who waits or is waited for, the heaviest first.
---@return GraphNode[]
function methods:sessions()
  return table.move(states[self].list, 1, #states[self].list, 1, {})
end

--- Those who block others and wait for nobody, the heaviest first: to end them sets the others free.
---@return GraphNode[]
function methods:roots()
  local roots = {}
  for _, node in ipairs(states[self].list) do
    if not node.waits_for then
      roots[#roots + 1] = node
    end
  end
  return roots
end

-- By place of a leader: the edges of its group to other groups, as numbers into `flat`.
local function edges_by_waiter(state)
  if not state.waits then
    local waits = {}
    for i = 1, #state.flat, FIELDS_AN_EDGE do
      local waiter, blocker = state.leaders[state.flat[i]], state.leaders[state.flat[i + 1]]
      if waiter ~= blocker then
        waits[waiter] = waits[waiter] or {}
        table.insert(waits[waiter], i)
      end
    end
    state.waits = waits
  end
  return state.waits
end

-- The shortest way from a node back to itself, as places.
local function shortest_cycle(state, start)
  local waits, before, reached, at = edges_by_waiter(state), {}, { start }, 1
  while reached[at] do
    local place = reached[at]
    for _, i in ipairs(waits[place] or {}) do
      local next_place = state.leaders[state.flat[i + 1]]
      if next_place == start then
        local cycle = {}
        while place do
          table.insert(cycle, 1, place)
          place = before[place]
        end
        return cycle
      elseif not before[next_place] and state.components[next_place] == state.components[start] then
        before[next_place] = place
        reached[#reached + 1] = next_place
      end
    end
    at = at + 1
  end
end

local function cycles_of(state)
  local covered, cycles, places = {}, {}, {}
  for place, node in pairs(state.nodes) do
    if node.in_cycle then
      places[#places + 1] = place
    end
  end
  table.sort(places, function(a, b) return (state.pids[a] or 0) < (state.pids[b] or 0) end)
  for _, place in ipairs(places) do
    local cycle = not covered[place] and shortest_cycle(state, place)
    if cycle then
      for _, member in ipairs(cycle) do
        covered[member] = true
      end
      cycles[#cycles + 1] = cycle
    end
  end
  return cycles
end

--- Those who wait for each other: lists of pids, each of which waits for the next and the last for the
--- first. Everybody who is in some cycle is in one of these.
---@return integer[][]
function methods:cycles()
  local cycles = cycles_of(states[self])
  for _, cycle in ipairs(cycles) do
    for i, place in ipairs(cycle) do
      cycle[i] = states[self].pids[place]
    end
  end
  return cycles
end

---------------------------------------------------------------------------------------------------
-- the tree

-- Is b a better parent than a? Whoever holds is better than one who is only queued, one who waits himself
-- than a root, since the root is above him, a heavier one than a lighter one.
local function is_better(state, a, b)
  local flat, nodes, leaders = state.flat, state.nodes, state.leaders
  local a_holds, b_holds = flat[a + 3] >= 0, flat[b + 3] >= 0
  if a_holds ~= b_holds then
    return b_holds
  elseif not a_holds then
    return false -- the first in the queue
  end
  local a_node, b_node = nodes[leaders[flat[a + 1]]], nodes[leaders[flat[b + 1]]]
  if (a_node.waits_for == nil) ~= (b_node.waits_for == nil) then
    return b_node.waits_for ~= nil
  end
  return a_node ~= b_node and by_weight(b_node, a_node)
end

-- By place: the edge to the parent that a node is shown below. Nodes of one cycle are shown below those
-- through whom something outside blocks it; where there is none, one of them is at the top.
local function choose_parents(state)
  local waits, parents, heads = edges_by_waiter(state), {}, {}
  local entries, waiters = {}, {} -- of components with cycles; by place: edges of those who wait for it
  for place, node in pairs(state.nodes) do
    for _, i in ipairs(waits[place] or {}) do
      local blocker = state.leaders[state.flat[i + 1]]
      if state.components[blocker] ~= state.components[place] then
        if not parents[place] or is_better(state, parents[place], i) then
          parents[place] = i
        end
      else
        waiters[blocker] = waiters[blocker] or {}
        table.insert(waiters[blocker], i)
      end
    end
    if not waits[place] then
      heads[#heads + 1] = place
    elseif node.in_cycle then
      local component = state.components[place]
      entries[component] = entries[component] or { others = {} }
      table.insert(parents[place] and entries[component] or entries[component].others, place)
    end
  end
  local function longest_first(a, b)
    local x, y = state.nodes[a].waited or 0, state.nodes[b].waited or 0
    if x ~= y then
      return x > y
    end
    return (state.pids[a] or 0) < (state.pids[b] or 0)
  end
  for _, members in pairs(entries) do
    if #members == 0 then
      table.sort(members.others, longest_first)
      members[1] = members.others[1]
      heads[#heads + 1] = members[1]
    end
    local seen, at = {}, 1
    for _, place in ipairs(members) do
      seen[place] = true
    end
    while members[at] do
      for _, i in ipairs(waiters[members[at]] or {}) do
        local waiter = state.leaders[state.flat[i]]
        if not seen[waiter] then
          seen[waiter], parents[waiter] = true, i
          members[#members + 1] = waiter
        end
      end
      at = at + 1
    end
  end
  table.sort(heads, function(a, b) return by_weight(state.nodes[a], state.nodes[b]) end)
  return parents, heads
end

local function entry_of(node)
  local entry = { children = {}, also = {} }
  for name, value in pairs(node) do
    entry[name] = value
  end
  return entry
end

-- Those with the most behind them first, then the longest wait; what is shown elsewhere last.
local function by_importance(a, b)
  if (a.again or false) ~= (b.again or false) then
    return not a.again
  elseif a.behind ~= b.behind then
    return a.behind > b.behind
  elseif (a.waited or 0) ~= (b.waited or 0) then
    return (a.waited or 0) > (b.waited or 0)
  end
  return (a.pid or 0) < (b.pid or 0)
end

--- The graph as trees: below each who is in the way those that wait for it, the heaviest root first. Who
--- waits for several is shown below one of them, and below the others that hold something as `again`,
--- without those behind it. A cycle that nothing else blocks is a tree of its own, with `cycle`.
---@return GraphEntry[]
function methods:tree()
  local state = states[self]
  local parents, heads = choose_parents(state)
  local entries, in_cycles = {}, {}
  for place, node in pairs(state.nodes) do
    entries[place] = entry_of(node)
  end
  local function is_above(place, below)
    while below do
      if below == place then
        return true
      end
      below = parents[below] and state.leaders[state.flat[parents[below] + 1]]
    end
    return false
  end
  for place, list in pairs(edges_by_waiter(state)) do
    local entry, parent = entries[place], parents[place]
    for _, i in ipairs(list) do
      local blocker = state.leaders[state.flat[i + 1]]
      if i == parent then
        entry.edge = edge_at(state, i)
        table.insert(entries[blocker].children, entry)
      else
        local closes = state.components[blocker] == state.components[place] and is_above(place, blocker)
        if closes or state.flat[i + 3] >= 0 and not is_above(blocker, place) then
          local again = entry_of(state.nodes[place])
          again.again, again.closes, again.edge = true, closes or nil, edge_at(state, i)
          table.insert(entry.also, state.nodes[blocker])
          table.insert(entries[blocker].children, again)
        end
      end
    end
  end
  for _, cycle in ipairs(cycles_of(state)) do
    for _, place in ipairs(cycle) do
      in_cycles[place] = in_cycles[place] or cycle
    end
  end
  for _, entry in pairs(entries) do
    table.sort(entry.children, by_importance)
    table.sort(entry.also, by_weight)
  end
  local trees = {}
  for i, place in ipairs(heads) do
    trees[i] = entries[place]
    if state.nodes[place].in_cycle then
      trees[i].cycle = {}
      for k, member in ipairs(in_cycles[place]) do
        trees[i].cycle[k] = state.nodes[member]
      end
    end
  end
  return trees
end

--- Whom to end so that those behind the heaviest root go on: that root, and the other roots that hold what
--- those right behind it wait for.
---@return GraphNode[]  none where nobody waits, or all who block wait for each other
function methods:culprits()
  local roots, state = self:roots(), states[self]
  if #roots == 0 then
    return {}
  end
  local culprits, seen = { roots[1] }, { [roots[1]] = true }
  for _, list in pairs(edges_by_waiter(state)) do
    local found, is_behind = {}, false
    for _, i in ipairs(list) do
      local blocker = state.nodes[state.leaders[state.flat[i + 1]]]
      is_behind = is_behind or blocker == roots[1]
      if not blocker.waits_for then
        found[#found + 1] = blocker
      end
    end
    for _, root in ipairs(is_behind and found or {}) do
      if not seen[root] then
        seen[root] = true
        culprits[#culprits + 1] = root
      end
    end
  end
  table.sort(culprits, by_weight)
  return culprits
end

---------------------------------------------------------------------------------------------------
-- pictures

--- As a digraph of Graphviz' DOT language: arrows go from who waits to who is in the way.
---@return string
function methods:to_dot()
  return require("lockkeeper.picture.dot")(self)
end

--- As a picture that needs nothing else, to be shown by a browser.
---@param title? string
---@param unfolded? boolean  a line for each session, also where several wait for the same
---@return string
function methods:to_svg(title, unfolded)
  return require("lockkeeper.picture.svg")(self, title, unfolded)
end

--- As a page that needs nothing else: the picture, and all sessions with their statements.
---@param title? string
---@param unfolded? boolean  as in to_svg
---@return string
function methods:to_html(title, unfolded)
  return require("lockkeeper.picture.html")(self, title, unfolded)
end

local LOCK_FIELDS = { "type", "schema", "relation", "relation_kind", "database", "lock_name", "classid",
  "objid", "objsubid", "transactionid", "virtualxid", "page", "tuple" }

local ACTIVITY_FIELDS = { "user", "database", "application_name", "client_addr", "backend_type", "state",
  "wait_event_type", "wait_event", "query" }

local function or_null(value)
  if value == nil then
    return core.null
  end
  return type(value) == "string" and safe.utf8(value) or value
end

local function seconds(value)
  return or_null(field.full("duration", value))
end

local function lock_object(lock)
  local object = { on = or_null(described(lock)), key = lock.key and field.key_word(lock.key) }
  for _, name in ipairs(LOCK_FIELDS) do
    local value = lock[name]
    object[name] = value ~= nil and or_null(value) or nil
  end
  return object
end

local function session_object(node)
  local activity = node.activity
  local object = {
    pid = or_null(node.pid), gid = or_null(node.gid), class = node.class, behind = node.behind,
    weight = seconds(node.weight), waited = seconds(node.waited), waits_for = or_null(node.waits_for),
    in_cycle = node.in_cycle, state_duration = seconds(activity.state_duration),
    xact_duration = seconds(activity.xact_duration),
  }
  for _, name in ipairs(ACTIVITY_FIELDS) do
    object[name] = or_null(activity[name])
  end
  return object
end

--- As tables for JSON: { taken_at, edges, sessions, roots, cycles }; durations in seconds, instants as
--- RFC 3339 in UTC, keys as texts, null for what is not known.
---@return table
function methods:to_table()
  local objects, lists = {}, { edges = core.array {}, sessions = core.array {}, roots = core.array {},
    cycles = core.array {} }
  for i, edge in ipairs(self:edges()) do
    objects[edge.lock] = objects[edge.lock] or lock_object(edge.lock)
    lists.edges[i] = {
      waiter_pid = edge.waiter_pid, blocker_pid = or_null(edge.blocker_pid),
      blocker_gid = or_null(edge.blocker_gid), blocker_class = edge.blocker_class,
      lock = objects[edge.lock], requested_mode = edge.requested_mode, held_mode = or_null(edge.held_mode),
      waited = seconds(edge.waited), certainty = edge.certainty,
    }
  end
  for i, node in ipairs(states[self].list) do
    lists.sessions[i] = session_object(node)
  end
  for i, node in ipairs(self:roots()) do
    lists.roots[i] = { pid = or_null(node.pid), gid = or_null(node.gid), class = node.class,
      behind = node.behind, weight = seconds(node.weight) }
  end
  for i, cycle in ipairs(self:cycles()) do
    lists.cycles[i] = core.array(cycle)
  end
  lists.taken_at = field.instant(self.taken_at)
  return lists
end

--- The same as a JSON text.
---@return string
function methods:to_json()
  return json.encode(self:to_table())
end

---------------------------------------------------------------------------------------------------
-- where graphs come from

local OPTIONS = { "exact", "using" }

-- The graph, and what it was made of.
local function look(session, exact)
  local ask = query.asker_of(session)
  local further_asked = query.further_of(ask)
  local looked, made = ask(function(side)
    local taken = core.look_locks(side, further_asked)
    local raw = core.graph_look(taken)
    core.graph_confirm(raw, side, exact)
    local numbers = numbers_of(core.graph_edges(raw), core.graph_tuples(raw))
    if #numbers > 0 then
      core.look_names(taken, side, numbers)
    end
    return taken, raw
  end)
  local taken_at, is_hidden = core.look_facts(looked)
  local self = new {
    core = made, taken_at = taken_at,
    rows_at = function(numbers) return core.lock_rows_at(looked, numbers) end,
    tuples = function() return core.graph_tuples(made) end,
  }
  if is_hidden then
    query.tell_hidden(session, states[self].list)
  end
  return self, looked
end

--- The wait-for graph of the sessions that wait in the database, and of whoever is in their way.
--- Source: PostgreSQL manual, "pg_locks"; its lock manager's README.
---@param session? Session|string    nil: the default session, or options.using
---@param options? { exact?: boolean, using?: string|Session }  exact: edges are pg_blocking_pids' alone
---@return Graph
function graph.take(session, options)
  call.check_options("graph", options, OPTIONS)
  options = options or {}
  if options.exact ~= nil and type(options.exact) ~= "boolean" then
    core.usage("graph: exact must be true or false, not " .. tostring(options.exact))
  end
  return (look(core.session(options.using or session), options.exact or false))
end

--- The same, and besides every row of lock.locks from the same snapshot.
---@param session Session
---@return Graph
---@return LockRow[]
function graph.take_with_rows(session)
  local self, looked = look(session, false)
  return self, core.lock_rows(looked)
end

local TAG = { "type", "database", "schema", "relation", "page", "tuple", "virtualxid", "transactionid",
  "classid", "objid", "objsubid" }

-- What makes two rows of saved locks the same lock.
local function tag_of(row)
  local parts = {}
  for i, name in ipairs(TAG) do
    parts[i] = row[name] == nil and "" or tostring(row[name])
  end
  return table.concat(parts, "\0")
end

local function since_of(row, taken_at)
  return row.wait_start or row.wait_duration and taken_at - row.wait_duration or nil
end

-- The parties of rows: { pid, leader, activity } by place, and the place of each row's.
local function parties_of(rows)
  local parties, places, of_row = {}, {}, {}
  for i, row in ipairs(rows) do
    local activity = row.activity or {}
    local key = row.pid or "gid " .. (activity.gid or "")
    if not places[key] then
      parties[#parties + 1] = { pid = row.pid or 0, activity = activity, leader = #parties + 1 }
      places[key] = #parties
    end
    of_row[i] = places[key]
  end
  for _, party in ipairs(parties) do
    local leader = places[party.activity.leader_pid or 0]
    if leader and not parties[leader].activity.leader_pid then
      party.leader = leader
    end
  end
  return parties, of_row
end

--- The graph of rows of lock.locks that were saved: all of them, in their order. Nobody is asked, so no edge
--- is "confirmed".
---@param rows LockRow[]
---@param taken_at number  epoch seconds
---@return Graph
function graph.of_rows(rows, taken_at)
  local parties, of_row = parties_of(rows)
  local objects, count, tags, locks, kept = {}, 0, {}, {}, {}
  for i, row in ipairs(rows) do
    tags[i] = tag_of(row)
    if not row.granted and not objects[tags[i]] then
      count = count + 1
      objects[tags[i]] = count
    end
  end
  for i, row in ipairs(rows) do
    local object = objects[tags[i]]
    if object then
      kept[#kept + 1] = row
      locks[#kept] = { object = object, party = of_row[i], mode = row.mode, granted = row.granted,
        extend = row.type == "extend", since = since_of(row, taken_at) }
    end
  end
  return new {
    core = core.graph_of(parties, locks), taken_at = taken_at,
    activity_of = function(place) return parties[place].activity end,
    rows_at = function(numbers)
      local found = {}
      for i, number in ipairs(numbers) do
        found[i] = kept[number + 1]
      end
      return found
    end,
  }
end

return graph
