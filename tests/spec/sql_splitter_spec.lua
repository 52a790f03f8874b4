-- Where an SQL file is cut into statements (analyze), as psql does it.

local splitter = require "lockkeeper.analyze.sql_splitter"

local function texts(text, standard_strings)
  local statements, faults = splitter.split(text, standard_strings)
  assert.same({}, faults)
  local list = {}
  for i, statement in ipairs(statements) do
    list[i] = statement.text
  end
  return list
end

local function faults(text)
  local list = {}
  for i, fault in ipairs(select(2, splitter.split(text))) do
    list[i] = ("%d: %s"):format(fault.line, fault.message)
  end
  return list
end

describe("sql_splitter", function()
  it("cuts at semicolons, and says in which line a statement begins", function()
    local statements = splitter.split("\n-- first\nselect 1 ;\n\n/* second */ select\n2; select 3")
    assert.equal(3, #statements)
    assert.same({ "select 1", "select\n2", "select 3" },
      { statements[1].text, statements[2].text, statements[3].text })
    assert.same({ 3, 5, 6 }, { statements[1].line, statements[2].line, statements[3].line })
  end)

  it("finds no statement in what is empty", function()
    for _, text in ipairs { "", " \n\t", ";", " ; ;; ", "-- only a comment", "/* and\none */", "\u{FEFF}" } do
      assert.same({}, texts(text))
    end
    assert.same({ "select 1" }, texts("\u{FEFF}select 1"))
  end)

  it("cuts nothing inside texts, quoted names, dollar quotes, comments and parentheses", function()
    for _, text in ipairs {
      "select 'a;b'", "select 'it''s; fine'", 'select "a;""b"', "select $$a;b$$", "select $t$a;$$;$t$",
      "select $é1$a;$é1$", "select 1 /* a; /* nested; */ b; */ + 1", "select 1 -- a;\n + 1",
      "create rule r as on insert to t do also (select 1; select 2)", "select U&'d\\0061;'", 'select U&"a;"',
      "select b'1;0'", "select n'a;'", "select E'it\\'s; fine'", "select e'a\\\\;'",
      "select e'one'\n -- between\n 'two\\';'", "do $do$ begin perform $$;$$; end; $do$", "select /**/ ';'",
      "select 1 /***/ + ';'::int", "select '-- ;'", "select '/* ;' || '*/'",
    } do
      assert.same({ text, "select 2" }, texts(text .. "; select 2"))
    end
  end)

  it("takes no dollar quote where a name or a parameter goes on", function()
    assert.same({ "select a$b$c", "select d$b$" }, texts("select a$b$c; select d$b$"))
    assert.same({ "select $1", "select $2" }, texts("select $1; select $2"))
    assert.same({ "select $1$a$;$a$" }, texts("select $1$a$;$a$"))
  end)

  it("takes an E for a name's end where one goes before it", function()
    assert.same({ "select name'a\\'", "select 2" }, texts("select name'a\\'; select 2"))
  end)

  it("keeps a routine's body in standard SQL whole", function()
    local routine = "create or replace function f(a int) returns int begin atomic "
      .. "select case when a > 0 then 1 else 2 end; select 2; end"
    assert.same({ routine, "select 3" }, texts(routine .. "; select 3"))
    routine = 'create procedure "p"() begin atomic insert into t values (1); end'
    assert.same({ routine, "begin", "select 3", "end" }, texts(routine .. "; begin; select 3; end"))
  end)

  it("reads backslashes as standard_conforming_strings says, also where the file sets it", function()
    local text = "select 'a\\'; select 2;'"
    assert.same({ "select 'a\\'; select 2;'" }, texts(text, false))
    assert.same({ "select 'a\\'", "select 2" }, texts("select 'a\\'; select 2", true))
    for _, set in ipairs { "set standard_conforming_strings = off",
      "SET LOCAL standard_conforming_strings TO 'off'",
      "set session standard_conforming_strings to false" } do
      assert.same({ set, text }, texts(set .. "; " .. text))
    end
    local on = "set standard_conforming_strings = on"
    assert.same({ on, "select 'a\\'", "select 2" },
      texts("set standard_conforming_strings = on; select 'a\\'; select 2", false))
  end)

  it("names the line where what does not end begins", function()
    assert.same({ "3: the text in quotes that begins here does not end" },
      faults("select 1;\n\nselect 'a;\n;\n"))
    assert.same({ "2: the name in double quotes that begins here does not end" }, faults('select\n"a;\n'))
    assert.same({ "1: the comment that begins here does not end" }, faults("/* a /* b */ select 1;"))
    assert.same({ "2: the text in $t$ that begins here does not end" }, faults("do\n$t$ begin $$ end;"))
    assert.same({ "1: the text in quotes that begins here does not end" }, faults("select E'a\\'"))
  end)

  it("refuses psql's own commands by name and line", function()
    assert.same({ "1: \\set: a command of psql's, not SQL", "3: \\i: a command of psql's, not SQL",
      "4: \\gexec: a command of psql's, not SQL", "5: \\d+: a command of psql's, not SQL" },
      faults("\\set x 'it''s\nselect 1;\n\\i other.sql\nselect 2 \\gexec\n\\d+ t\n"))
    assert.same({}, faults("select E'\\i', '\\i', $$\\i$$ /* \\i */ -- \\i"))
  end)

  it("refuses data for COPY … FROM STDIN, and reads none of it", function()
    local list = faults("select 1;\ncopy t (a, b)\n from stdin;\n1\tit's\n\\.\nselect 2;\n")
    assert.equal(1, #list)
    assert.matches("^2: COPY … FROM STDIN", list[1])
    assert.same({}, faults("copy t from '/tmp/stdin'"))
  end)

  it("refuses a NUL byte, and says no more than twenty faults", function()
    assert.matches("^2: a NUL byte", faults("select 1;\n\0")[1])
    assert.equal(20, #faults(("\\x\n"):rep(1000)))
  end)

  it("gives statements that differ in values only the same words", function()
    local list = splitter.split("insert into t values (1, 'a'); INSERT INTO t VALUES (2.5, $$b$$); "
      .. "insert into u values (1, 'a')")
    assert.equal(list[1].words, list[2].words)
    assert.not_equal(list[1].words, list[3].words)
    assert.same({ "INSERT", "INTO", "T", "VALUES", "(", "0", ",", "''", ")" }, list[1].words)
    assert.is_true(list[1].names.t)
  end)

  it("folds names as PostgreSQL does", function()
    local names = splitter.split('select * from Orders, "Odd ""Name", public."T"')[1].names
    assert.is_true(names.orders)
    assert.is_true(names['Odd "Name'])
    assert.is_true(names.T)
    assert.is_nil(names.t)
  end)

  it("takes ten megabytes, in many statements or in one", function()
    local many = splitter.split(("insert into t values (1, '" .. ("x"):rep(200) .. "');\n"):rep(45000))
    assert.equal(45000, #many)
    assert.equal(45000, many[45000].line)
    local one = splitter.split("insert into t values " .. ("(1, 'x;'),\n"):rep(900000))
    assert.equal(1, #one)
    assert.is_true(one[1].is_cut)
    assert.equal(1, #(splitter.split("select '" .. ("x''"):rep(3000000) .. "'")))
  end)
end)
