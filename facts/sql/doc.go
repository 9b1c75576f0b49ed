// Package sql reads what PostgreSQL statements do: their verbs, and the tables, functions
// and settings that they name. It has no grammar. An exact lexer and a reader find at
// least what the server would touch; what they do not account for is opaque, and a text
// that the server would read in another way is unreadable. Facts that are too many cause
// a refusal that can be explained; none may be missing.
//
// The text is read as a server of PostgreSQL 13 to 18 reads it with
// standard_conforming_strings=on, client_encoding=UTF8 and
// search_path="pg_catalog, public", which the session therefore pins.
//
// No text shows everything that a statement does. The rights of the role are the wall;
// facts are the fence in front of it. They do not show what views, triggers, rules,
// policies and the bodies of functions do; the functions of operators, casts, domains and
// defaults; x.f and (x).f, which are f(x) where x has no column f and f is not built in; and
// a function of the schema public that has the name of a built-in one and fits the
// arguments better.
//
// Tests judge the facts by libpg_query, PostgreSQL's own parser, on the statements of
// PostgreSQL's regression suite and on random splices of them. testdata/statements.txt shows
// statements with their facts.
package sql
