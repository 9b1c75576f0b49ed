package sql

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Settings that change what a text means, or what is enforced, are facts with their value
// if the value is the one that the session pins, and without it otherwise.
const (
	settingUTF8     = "client_encoding=UTF8"
	settingStrings  = "standard_conforming_strings=on"
	settingPath     = "search_path=pg_catalog"
	settingReadOnly = "transaction_read_only=on"
	settingWrite    = "transaction_read_only"
)

// harmless reports whether every value of the setting passes. Such a setting does not
// change how a text is read, where names are looked up, what a role may do, or whether it
// may write.
func harmless(name string) bool {
	switch name {
	case "application_name", "client_min_messages", // shown in logs; which notices are sent
		"bytea_output", "datestyle", "extra_float_digits", "intervalstyle", "timezone", "xmloption", // the form of values
		"idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout", "statement_timeout",
		"transaction_timeout",                                             // the rule's own limits hold beside them
		"default_transaction_deferrable", "default_transaction_isolation", // the isolation of later transactions
		"transaction_deferrable", "transaction_isolation", // and of this one
		"constraints",                 // SET CONSTRAINTS: when they are checked
		"jit", "synchronize_seqscans", // how a query is run
		"quote_all_identifiers",            // the form of definitions, for pg_dump
		"restrict_nonsystem_relation_kind", // a restriction of pg_dump's own
		"row_security":                     // off makes a query fail that a policy would filter
		return true
	}
	return false
}

// setting adds the fact of a setting that is set to a value, or to one that is not constant.
func (r *reader) setting(name, value string, constant bool) {
	name = strings.ToLower(name)
	if strings.Contains(name, "=") { // a fact with a value
		r.account(opaqueName)
		return
	}
	is := func(values ...string) bool { return constant && slices.Contains(values, strings.ToLower(value)) }
	switch name {
	case "role":
		r.forbid("set-role")
		return
	case "session_authorization":
		r.forbid("set-session-authorization")
		return
	case "client_encoding":
		if is("utf8", "utf-8", "unicode") {
			name = settingUTF8
		}
	case "standard_conforming_strings":
		if is("on", "true", "yes", "1") {
			name = settingStrings
		}
	case "search_path":
		// With no schema, or pg_catalog, a name without a schema is no user's table or function.
		// The fact still names the one in public.
		if is("", "pg_catalog") {
			name = settingPath
		}
	case "transaction_read_only", "default_transaction_read_only":
		name = settingWrite
		if is("on", "true", "yes", "1") {
			name = settingReadOnly
		}
	}
	if name == "" || len(name) > authz.MaxFactName || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f || c == '*' }) {
		r.account(opaqueName)
		return
	}
	r.add(authz.FactSetting, name)
}
