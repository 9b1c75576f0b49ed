package resp

import "strings"

// Forbidden reports whether no rule can grant a command, as in "config set". It
// changes the server, the session of other clients or what of the connection the
// facts rest on: its login, and that each command has its answer in order.
func Forbidden(name string) bool {
	switch name {
	case "monitor", "sync", "psync", "replconf", "replicaof", "slaveof", "failover", // replication shows every command with its values
		"migrate", "restore-asking", // the server dials out; a part of migrate
		"debug", "pfdebug", "pfselftest", "shutdown", "swapdb", "save", "bgsave", "bgrewriteaof",
		"config set", "config rewrite",
		"reset",                                                           // logs the leased user out
		"client kill", "client pause", "client unpause", "client unblock", // other clients
		"client no-evict",
		"client reply", // swallows answers, those of refused commands too
		"script debug": // changes the protocol of the connection
		return true
	case "acl whoami", "acl cat", "acl help",
		"cluster info", "cluster slots", "cluster shards", "cluster keyslot", "cluster nodes", "cluster myid", "cluster help":
		return false
	}
	container, _, _ := strings.Cut(name, " ")
	return container == "module" || container == "acl" || container == "cluster"
}

// Always returns the commands that every rule for Redis grants: of the connection
// itself, of transactions, and unsubscribing. WATCH has its keys as facts, SELECT its
// database and CLIENT TRACKING its prefixes, which the rule must grant.
func Always() []string {
	return []string{
		"auth", "client caching", "client getname", "client getredir", "client help", "client id", "client info",
		"client no-touch", "client setinfo", "client setname", "client tracking", "client trackinginfo",
		"command", "command count", "command docs", "command getkeys", "command getkeysandflags", "command help",
		"command info", "command list", "discard", "echo", "exec", "hello", "multi", "ping", "punsubscribe", "quit",
		"select", "sunsubscribe", "unsubscribe", "unwatch", "watch",
	}
}

// ofConnection reports whether a command touches no database, so that it may come
// before the SELECT of one that is granted.
func ofConnection(name string) bool {
	switch name {
	case "auth", "hello", "ping", "echo", "quit", "select":
		return true
	}
	container, _, _ := strings.Cut(name, " ")
	return container == "client" || container == "command"
}

// laterRow returns the row of a command of a later server than the table's that
// clients send at the beginning of each connection.
func laterRow(name string) (row, bool) {
	switch name {
	case "client|setinfo":
		return row{name: "client setinfo", arity: 4, connection: true}, true
	case "client|no-touch":
		return row{name: "client no-touch", arity: 3, connection: true}, true
	}
	return row{}, false
}
