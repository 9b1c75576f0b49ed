// Code generated from COMMAND of Redis 7.0.15 by TestTable; DO NOT EDIT.

package resp

// groupBlocking is the category blocking.
const groupBlocking = 1 << 2

// groupNames returns the names of the categories, without @.
func groupNames() []string {
	return []string{"admin", "bitmap", "blocking", "connection", "dangerous", "fast", "geo", "hash", "hyperloglog", "keyspace", "list", "pubsub", "read", "scripting", "set", "slow", "sortedset", "stream", "string", "transaction", "write"}
}

// commandNames returns the names of all rows, those of subcommands as in config|get.
func commandNames() []string {
	return []string{
		"acl",
		"acl|cat",
		"acl|deluser",
		"acl|dryrun",
		"acl|genpass",
		"acl|getuser",
		"acl|help",
		"acl|list",
		"acl|load",
		"acl|log",
		"acl|save",
		"acl|setuser",
		"acl|users",
		"acl|whoami",
		"append",
		"asking",
		"auth",
		"bgrewriteaof",
		"bgsave",
		"bitcount",
		"bitfield",
		"bitfield_ro",
		"bitop",
		"bitpos",
		"blmove",
		"blmpop",
		"blpop",
		"brpop",
		"brpoplpush",
		"bzmpop",
		"bzpopmax",
		"bzpopmin",
		"client",
		"client|caching",
		"client|getname",
		"client|getredir",
		"client|help",
		"client|id",
		"client|info",
		"client|kill",
		"client|list",
		"client|no-evict",
		"client|pause",
		"client|reply",
		"client|setname",
		"client|tracking",
		"client|trackinginfo",
		"client|unblock",
		"client|unpause",
		"cluster",
		"cluster|addslots",
		"cluster|addslotsrange",
		"cluster|bumpepoch",
		"cluster|count-failure-reports",
		"cluster|countkeysinslot",
		"cluster|delslots",
		"cluster|delslotsrange",
		"cluster|failover",
		"cluster|flushslots",
		"cluster|forget",
		"cluster|getkeysinslot",
		"cluster|help",
		"cluster|info",
		"cluster|keyslot",
		"cluster|links",
		"cluster|meet",
		"cluster|myid",
		"cluster|nodes",
		"cluster|replicas",
		"cluster|replicate",
		"cluster|reset",
		"cluster|saveconfig",
		"cluster|set-config-epoch",
		"cluster|setslot",
		"cluster|shards",
		"cluster|slaves",
		"cluster|slots",
		"command",
		"command|count",
		"command|docs",
		"command|getkeys",
		"command|getkeysandflags",
		"command|help",
		"command|info",
		"command|list",
		"config",
		"config|get",
		"config|help",
		"config|resetstat",
		"config|rewrite",
		"config|set",
		"copy",
		"dbsize",
		"debug",
		"decr",
		"decrby",
		"del",
		"discard",
		"dump",
		"echo",
		"eval",
		"eval_ro",
		"evalsha",
		"evalsha_ro",
		"exec",
		"exists",
		"expire",
		"expireat",
		"expiretime",
		"failover",
		"fcall",
		"fcall_ro",
		"flushall",
		"flushdb",
		"function",
		"function|delete",
		"function|dump",
		"function|flush",
		"function|help",
		"function|kill",
		"function|list",
		"function|load",
		"function|restore",
		"function|stats",
		"geoadd",
		"geodist",
		"geohash",
		"geopos",
		"georadius",
		"georadius_ro",
		"georadiusbymember",
		"georadiusbymember_ro",
		"geosearch",
		"geosearchstore",
		"get",
		"getbit",
		"getdel",
		"getex",
		"getrange",
		"getset",
		"hdel",
		"hello",
		"hexists",
		"hget",
		"hgetall",
		"hincrby",
		"hincrbyfloat",
		"hkeys",
		"hlen",
		"hmget",
		"hmset",
		"hrandfield",
		"hscan",
		"hset",
		"hsetnx",
		"hstrlen",
		"hvals",
		"incr",
		"incrby",
		"incrbyfloat",
		"info",
		"keys",
		"lastsave",
		"latency",
		"latency|doctor",
		"latency|graph",
		"latency|help",
		"latency|histogram",
		"latency|history",
		"latency|latest",
		"latency|reset",
		"lcs",
		"lindex",
		"linsert",
		"llen",
		"lmove",
		"lmpop",
		"lolwut",
		"lpop",
		"lpos",
		"lpush",
		"lpushx",
		"lrange",
		"lrem",
		"lset",
		"ltrim",
		"memory",
		"memory|doctor",
		"memory|help",
		"memory|malloc-stats",
		"memory|purge",
		"memory|stats",
		"memory|usage",
		"mget",
		"migrate",
		"module",
		"module|help",
		"module|list",
		"module|load",
		"module|loadex",
		"module|unload",
		"monitor",
		"move",
		"mset",
		"msetnx",
		"multi",
		"object",
		"object|encoding",
		"object|freq",
		"object|help",
		"object|idletime",
		"object|refcount",
		"persist",
		"pexpire",
		"pexpireat",
		"pexpiretime",
		"pfadd",
		"pfcount",
		"pfdebug",
		"pfmerge",
		"pfselftest",
		"ping",
		"psetex",
		"psubscribe",
		"psync",
		"pttl",
		"publish",
		"pubsub",
		"pubsub|channels",
		"pubsub|help",
		"pubsub|numpat",
		"pubsub|numsub",
		"pubsub|shardchannels",
		"pubsub|shardnumsub",
		"punsubscribe",
		"quit",
		"randomkey",
		"readonly",
		"readwrite",
		"rename",
		"renamenx",
		"replconf",
		"replicaof",
		"reset",
		"restore",
		"restore-asking",
		"role",
		"rpop",
		"rpoplpush",
		"rpush",
		"rpushx",
		"sadd",
		"save",
		"scan",
		"scard",
		"script",
		"script|debug",
		"script|exists",
		"script|flush",
		"script|help",
		"script|kill",
		"script|load",
		"sdiff",
		"sdiffstore",
		"select",
		"set",
		"setbit",
		"setex",
		"setnx",
		"setrange",
		"shutdown",
		"sinter",
		"sintercard",
		"sinterstore",
		"sismember",
		"slaveof",
		"slowlog",
		"slowlog|get",
		"slowlog|help",
		"slowlog|len",
		"slowlog|reset",
		"smembers",
		"smismember",
		"smove",
		"sort",
		"sort_ro",
		"spop",
		"spublish",
		"srandmember",
		"srem",
		"sscan",
		"ssubscribe",
		"strlen",
		"subscribe",
		"substr",
		"sunion",
		"sunionstore",
		"sunsubscribe",
		"swapdb",
		"sync",
		"time",
		"touch",
		"ttl",
		"type",
		"unlink",
		"unsubscribe",
		"unwatch",
		"wait",
		"watch",
		"xack",
		"xadd",
		"xautoclaim",
		"xclaim",
		"xdel",
		"xgroup",
		"xgroup|create",
		"xgroup|createconsumer",
		"xgroup|delconsumer",
		"xgroup|destroy",
		"xgroup|help",
		"xgroup|setid",
		"xinfo",
		"xinfo|consumers",
		"xinfo|groups",
		"xinfo|help",
		"xinfo|stream",
		"xlen",
		"xpending",
		"xrange",
		"xread",
		"xreadgroup",
		"xrevrange",
		"xsetid",
		"xtrim",
		"zadd",
		"zcard",
		"zcount",
		"zdiff",
		"zdiffstore",
		"zincrby",
		"zinter",
		"zintercard",
		"zinterstore",
		"zlexcount",
		"zmpop",
		"zmscore",
		"zpopmax",
		"zpopmin",
		"zrandmember",
		"zrange",
		"zrangebylex",
		"zrangebyscore",
		"zrangestore",
		"zrank",
		"zrem",
		"zremrangebylex",
		"zremrangebyrank",
		"zremrangebyscore",
		"zrevrange",
		"zrevrangebylex",
		"zrevrangebyscore",
		"zrevrank",
		"zscan",
		"zscore",
		"zunion",
		"zunionstore",
	}
}

// lookup returns the row of a command, that of a subcommand by a name as config|get.
func lookup(name string) (r row, ok bool) {
	switch name {
	case "acl":
		return row{name: "acl", arity: -2, container: true, groups: 0x8000, forbidden: true}, true
	case "acl|cat":
		return row{name: "acl cat", arity: -2, groups: 0x8000}, true
	case "acl|deluser":
		return row{name: "acl deluser", arity: -3, groups: 0x8011, forbidden: true}, true
	case "acl|dryrun":
		return row{name: "acl dryrun", arity: -4, groups: 0x8011, forbidden: true}, true
	case "acl|genpass":
		return row{name: "acl genpass", arity: -2, groups: 0x8000, forbidden: true}, true
	case "acl|getuser":
		return row{name: "acl getuser", arity: 3, groups: 0x8011, forbidden: true}, true
	case "acl|help":
		return row{name: "acl help", arity: 2, groups: 0x8000}, true
	case "acl|list":
		return row{name: "acl list", arity: 2, groups: 0x8011, forbidden: true}, true
	case "acl|load":
		return row{name: "acl load", arity: 2, groups: 0x8011, forbidden: true}, true
	case "acl|log":
		return row{name: "acl log", arity: -2, groups: 0x8011, forbidden: true}, true
	case "acl|save":
		return row{name: "acl save", arity: 2, groups: 0x8011, forbidden: true}, true
	case "acl|setuser":
		return row{name: "acl setuser", arity: -3, groups: 0x8011, forbidden: true}, true
	case "acl|users":
		return row{name: "acl users", arity: 2, groups: 0x8011, forbidden: true}, true
	case "acl|whoami":
		return row{name: "acl whoami", arity: 2, groups: 0x8000}, true
	case "append":
		return row{name: "append", arity: 3, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "asking":
		return row{name: "asking", arity: 1, groups: 0x28}, true
	case "auth":
		return row{name: "auth", arity: -2, groups: 0x28, own: true, connection: true}, true
	case "bgrewriteaof":
		return row{name: "bgrewriteaof", arity: 1, groups: 0x8011, forbidden: true}, true
	case "bgsave":
		return row{name: "bgsave", arity: -1, groups: 0x8011, forbidden: true}, true
	case "bitcount":
		return row{name: "bitcount", arity: -2, groups: 0x9002, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "bitfield":
		return row{name: "bitfield", arity: -2, groups: 0x108002, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "bitfield_ro":
		return row{name: "bitfield_ro", arity: -2, groups: 0x1022, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "bitop":
		return row{name: "bitop", arity: -4, groups: 0x108002, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}, {kind: keyRange, index: 3, last: -1, step: 1}}}, true
	case "bitpos":
		return row{name: "bitpos", arity: -3, groups: 0x9002, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "blmove":
		return row{name: "blmove", arity: 6, groups: 0x108404, long: true, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "blmpop":
		return row{name: "blmpop", arity: -5, groups: 0x108404, long: true, keys: [2]keySpec{{kind: keyCount, index: 2, count: 0, first: 1, step: 1}}}, true
	case "blpop":
		return row{name: "blpop", arity: -3, groups: 0x108404, long: true, keys: [2]keySpec{{kind: keyRange, index: 1, last: -2, step: 1}}}, true
	case "brpop":
		return row{name: "brpop", arity: -3, groups: 0x108404, long: true, keys: [2]keySpec{{kind: keyRange, index: 1, last: -2, step: 1}}}, true
	case "brpoplpush":
		return row{name: "brpoplpush", arity: 4, groups: 0x108404, long: true, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "bzmpop":
		return row{name: "bzmpop", arity: -5, groups: 0x118004, long: true, keys: [2]keySpec{{kind: keyCount, index: 2, count: 0, first: 1, step: 1}}}, true
	case "bzpopmax":
		return row{name: "bzpopmax", arity: -3, groups: 0x110024, long: true, keys: [2]keySpec{{kind: keyRange, index: 1, last: -2, step: 1}}}, true
	case "bzpopmin":
		return row{name: "bzpopmin", arity: -3, groups: 0x110024, long: true, keys: [2]keySpec{{kind: keyRange, index: 1, last: -2, step: 1}}}, true
	case "client":
		return row{name: "client", arity: -2, container: true, groups: 0x8000, connection: true}, true
	case "client|caching":
		return row{name: "client caching", arity: 3, groups: 0x8008, connection: true}, true
	case "client|getname":
		return row{name: "client getname", arity: 2, groups: 0x8008, connection: true}, true
	case "client|getredir":
		return row{name: "client getredir", arity: 2, groups: 0x8008, connection: true}, true
	case "client|help":
		return row{name: "client help", arity: 2, groups: 0x8008, connection: true}, true
	case "client|id":
		return row{name: "client id", arity: 2, groups: 0x8008, connection: true}, true
	case "client|info":
		return row{name: "client info", arity: 2, groups: 0x8008, connection: true}, true
	case "client|kill":
		return row{name: "client kill", arity: -3, groups: 0x8019, forbidden: true, connection: true}, true
	case "client|list":
		return row{name: "client list", arity: -2, groups: 0x8019, connection: true}, true
	case "client|no-evict":
		return row{name: "client no-evict", arity: 3, groups: 0x8019, forbidden: true, connection: true}, true
	case "client|pause":
		return row{name: "client pause", arity: -3, groups: 0x8019, forbidden: true, connection: true}, true
	case "client|reply":
		return row{name: "client reply", arity: 3, groups: 0x8008, forbidden: true, connection: true}, true
	case "client|setname":
		return row{name: "client setname", arity: 3, groups: 0x8008, connection: true}, true
	case "client|tracking":
		return row{name: "client tracking", arity: -3, groups: 0x8008, own: true, connection: true}, true
	case "client|trackinginfo":
		return row{name: "client trackinginfo", arity: 2, groups: 0x8008, connection: true}, true
	case "client|unblock":
		return row{name: "client unblock", arity: -3, groups: 0x8019, forbidden: true, connection: true}, true
	case "client|unpause":
		return row{name: "client unpause", arity: 2, groups: 0x8019, forbidden: true, connection: true}, true
	case "cluster":
		return row{name: "cluster", arity: -2, container: true, groups: 0x8000, forbidden: true}, true
	case "cluster|addslots":
		return row{name: "cluster addslots", arity: -3, groups: 0x8011, forbidden: true}, true
	case "cluster|addslotsrange":
		return row{name: "cluster addslotsrange", arity: -4, groups: 0x8011, forbidden: true}, true
	case "cluster|bumpepoch":
		return row{name: "cluster bumpepoch", arity: 2, groups: 0x8011, forbidden: true}, true
	case "cluster|count-failure-reports":
		return row{name: "cluster count-failure-reports", arity: 3, groups: 0x8011, forbidden: true}, true
	case "cluster|countkeysinslot":
		return row{name: "cluster countkeysinslot", arity: 3, groups: 0x8000, forbidden: true}, true
	case "cluster|delslots":
		return row{name: "cluster delslots", arity: -3, groups: 0x8011, forbidden: true}, true
	case "cluster|delslotsrange":
		return row{name: "cluster delslotsrange", arity: -4, groups: 0x8011, forbidden: true}, true
	case "cluster|failover":
		return row{name: "cluster failover", arity: -2, groups: 0x8011, forbidden: true}, true
	case "cluster|flushslots":
		return row{name: "cluster flushslots", arity: 2, groups: 0x8011, forbidden: true}, true
	case "cluster|forget":
		return row{name: "cluster forget", arity: 3, groups: 0x8011, forbidden: true}, true
	case "cluster|getkeysinslot":
		return row{name: "cluster getkeysinslot", arity: 4, groups: 0x8000, forbidden: true}, true
	case "cluster|help":
		return row{name: "cluster help", arity: 2, groups: 0x8000}, true
	case "cluster|info":
		return row{name: "cluster info", arity: 2, groups: 0x8000}, true
	case "cluster|keyslot":
		return row{name: "cluster keyslot", arity: 3, groups: 0x8000}, true
	case "cluster|links":
		return row{name: "cluster links", arity: 2, groups: 0x8000, forbidden: true}, true
	case "cluster|meet":
		return row{name: "cluster meet", arity: -4, groups: 0x8011, forbidden: true}, true
	case "cluster|myid":
		return row{name: "cluster myid", arity: 2, groups: 0x8000}, true
	case "cluster|nodes":
		return row{name: "cluster nodes", arity: 2, groups: 0x8000}, true
	case "cluster|replicas":
		return row{name: "cluster replicas", arity: 3, groups: 0x8011, forbidden: true}, true
	case "cluster|replicate":
		return row{name: "cluster replicate", arity: 3, groups: 0x8011, forbidden: true}, true
	case "cluster|reset":
		return row{name: "cluster reset", arity: -2, groups: 0x8011, forbidden: true}, true
	case "cluster|saveconfig":
		return row{name: "cluster saveconfig", arity: 2, groups: 0x8011, forbidden: true}, true
	case "cluster|set-config-epoch":
		return row{name: "cluster set-config-epoch", arity: 3, groups: 0x8011, forbidden: true}, true
	case "cluster|setslot":
		return row{name: "cluster setslot", arity: -4, groups: 0x8011, forbidden: true}, true
	case "cluster|shards":
		return row{name: "cluster shards", arity: 2, groups: 0x8000}, true
	case "cluster|slaves":
		return row{name: "cluster slaves", arity: 3, groups: 0x8011, forbidden: true}, true
	case "cluster|slots":
		return row{name: "cluster slots", arity: 2, groups: 0x8000}, true
	case "command":
		return row{name: "command", arity: -1, container: true, groups: 0x8008, connection: true}, true
	case "command|count":
		return row{name: "command count", arity: 2, groups: 0x8008, connection: true}, true
	case "command|docs":
		return row{name: "command docs", arity: -2, groups: 0x8008, connection: true}, true
	case "command|getkeys":
		return row{name: "command getkeys", arity: -4, groups: 0x8008, connection: true}, true
	case "command|getkeysandflags":
		return row{name: "command getkeysandflags", arity: -4, groups: 0x8008, connection: true}, true
	case "command|help":
		return row{name: "command help", arity: 2, groups: 0x8008, connection: true}, true
	case "command|info":
		return row{name: "command info", arity: -2, groups: 0x8008, connection: true}, true
	case "command|list":
		return row{name: "command list", arity: -2, groups: 0x8008, connection: true}, true
	case "config":
		return row{name: "config", arity: -2, container: true, groups: 0x8000}, true
	case "config|get":
		return row{name: "config get", arity: -3, groups: 0x8011, own: true}, true
	case "config|help":
		return row{name: "config help", arity: 2, groups: 0x8000}, true
	case "config|resetstat":
		return row{name: "config resetstat", arity: 2, groups: 0x8011}, true
	case "config|rewrite":
		return row{name: "config rewrite", arity: 2, groups: 0x8011, forbidden: true}, true
	case "config|set":
		return row{name: "config set", arity: -4, groups: 0x8011, forbidden: true}, true
	case "copy":
		return row{name: "copy", arity: -3, groups: 0x108200, own: true}, true
	case "dbsize":
		return row{name: "dbsize", arity: 1, groups: 0x1220}, true
	case "debug":
		return row{name: "debug", arity: -2, groups: 0x8011, forbidden: true}, true
	case "decr":
		return row{name: "decr", arity: 2, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "decrby":
		return row{name: "decrby", arity: 3, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "del":
		return row{name: "del", arity: -2, groups: 0x108200, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "discard":
		return row{name: "discard", arity: 1, groups: 0x80020, own: true}, true
	case "dump":
		return row{name: "dump", arity: 2, groups: 0x9200, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "echo":
		return row{name: "echo", arity: 2, groups: 0x28, connection: true}, true
	case "eval":
		return row{name: "eval", arity: -3, groups: 0xa000, own: true, long: true}, true
	case "eval_ro":
		return row{name: "eval_ro", arity: -3, groups: 0xa000, own: true, long: true}, true
	case "evalsha":
		return row{name: "evalsha", arity: -3, groups: 0xa000, own: true, long: true}, true
	case "evalsha_ro":
		return row{name: "evalsha_ro", arity: -3, groups: 0xa000, own: true, long: true}, true
	case "exec":
		return row{name: "exec", arity: 1, groups: 0x88000, own: true}, true
	case "exists":
		return row{name: "exists", arity: -2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "expire":
		return row{name: "expire", arity: -3, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "expireat":
		return row{name: "expireat", arity: -3, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "expiretime":
		return row{name: "expiretime", arity: 2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "failover":
		return row{name: "failover", arity: -1, groups: 0x8011, forbidden: true}, true
	case "fcall":
		return row{name: "fcall", arity: -3, groups: 0xa000, own: true, long: true}, true
	case "fcall_ro":
		return row{name: "fcall_ro", arity: -3, groups: 0xa000, own: true, long: true}, true
	case "flushall":
		return row{name: "flushall", arity: -1, groups: 0x108210, own: true}, true
	case "flushdb":
		return row{name: "flushdb", arity: -1, groups: 0x108210, own: true}, true
	case "function":
		return row{name: "function", arity: -2, container: true, groups: 0x8000}, true
	case "function|delete":
		return row{name: "function delete", arity: 3, groups: 0x10a000}, true
	case "function|dump":
		return row{name: "function dump", arity: 2, groups: 0xa000}, true
	case "function|flush":
		return row{name: "function flush", arity: -2, groups: 0x10a000}, true
	case "function|help":
		return row{name: "function help", arity: 2, groups: 0xa000}, true
	case "function|kill":
		return row{name: "function kill", arity: 2, groups: 0xa000}, true
	case "function|list":
		return row{name: "function list", arity: -2, groups: 0xa000}, true
	case "function|load":
		return row{name: "function load", arity: -3, groups: 0x10a000, own: true}, true
	case "function|restore":
		return row{name: "function restore", arity: -3, groups: 0x10a000, own: true}, true
	case "function|stats":
		return row{name: "function stats", arity: 2, groups: 0xa000}, true
	case "geoadd":
		return row{name: "geoadd", arity: -5, groups: 0x108040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "geodist":
		return row{name: "geodist", arity: -4, groups: 0x9040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "geohash":
		return row{name: "geohash", arity: -2, groups: 0x9040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "geopos":
		return row{name: "geopos", arity: -2, groups: 0x9040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "georadius":
		return row{name: "georadius", arity: -6, groups: 0x108040, own: true}, true
	case "georadius_ro":
		return row{name: "georadius_ro", arity: -6, groups: 0x9040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "georadiusbymember":
		return row{name: "georadiusbymember", arity: -5, groups: 0x108040, own: true}, true
	case "georadiusbymember_ro":
		return row{name: "georadiusbymember_ro", arity: -5, groups: 0x9040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "geosearch":
		return row{name: "geosearch", arity: -7, groups: 0x9040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "geosearchstore":
		return row{name: "geosearchstore", arity: -8, groups: 0x108040, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "get":
		return row{name: "get", arity: 2, groups: 0x41020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "getbit":
		return row{name: "getbit", arity: 3, groups: 0x1022, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "getdel":
		return row{name: "getdel", arity: 2, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "getex":
		return row{name: "getex", arity: -2, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "getrange":
		return row{name: "getrange", arity: 4, groups: 0x49000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "getset":
		return row{name: "getset", arity: 3, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hdel":
		return row{name: "hdel", arity: -3, groups: 0x1000a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hello":
		return row{name: "hello", arity: -1, groups: 0x28, own: true, connection: true}, true
	case "hexists":
		return row{name: "hexists", arity: 3, groups: 0x10a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hget":
		return row{name: "hget", arity: 3, groups: 0x10a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hgetall":
		return row{name: "hgetall", arity: 2, groups: 0x9080, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hincrby":
		return row{name: "hincrby", arity: 4, groups: 0x1000a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hincrbyfloat":
		return row{name: "hincrbyfloat", arity: 4, groups: 0x1000a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hkeys":
		return row{name: "hkeys", arity: 2, groups: 0x9080, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hlen":
		return row{name: "hlen", arity: 2, groups: 0x10a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hmget":
		return row{name: "hmget", arity: -3, groups: 0x10a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hmset":
		return row{name: "hmset", arity: -4, groups: 0x1000a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hrandfield":
		return row{name: "hrandfield", arity: -2, groups: 0x9080, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hscan":
		return row{name: "hscan", arity: -3, groups: 0x9080, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hset":
		return row{name: "hset", arity: -4, groups: 0x1000a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hsetnx":
		return row{name: "hsetnx", arity: 4, groups: 0x1000a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hstrlen":
		return row{name: "hstrlen", arity: 3, groups: 0x10a0, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "hvals":
		return row{name: "hvals", arity: 2, groups: 0x9080, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "incr":
		return row{name: "incr", arity: 2, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "incrby":
		return row{name: "incrby", arity: 3, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "incrbyfloat":
		return row{name: "incrbyfloat", arity: 3, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "info":
		return row{name: "info", arity: -1, groups: 0x8010}, true
	case "keys":
		return row{name: "keys", arity: 2, groups: 0x9210, own: true}, true
	case "lastsave":
		return row{name: "lastsave", arity: 1, groups: 0x31}, true
	case "latency":
		return row{name: "latency", arity: -2, container: true, groups: 0x8000}, true
	case "latency|doctor":
		return row{name: "latency doctor", arity: 2, groups: 0x8011}, true
	case "latency|graph":
		return row{name: "latency graph", arity: 3, groups: 0x8011}, true
	case "latency|help":
		return row{name: "latency help", arity: 2, groups: 0x8000}, true
	case "latency|histogram":
		return row{name: "latency histogram", arity: -2, groups: 0x8011}, true
	case "latency|history":
		return row{name: "latency history", arity: 3, groups: 0x8011}, true
	case "latency|latest":
		return row{name: "latency latest", arity: 2, groups: 0x8011}, true
	case "latency|reset":
		return row{name: "latency reset", arity: -2, groups: 0x8011}, true
	case "lcs":
		return row{name: "lcs", arity: -3, groups: 0x49000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 1, step: 1}}}, true
	case "lindex":
		return row{name: "lindex", arity: 3, groups: 0x9400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "linsert":
		return row{name: "linsert", arity: 5, groups: 0x108400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "llen":
		return row{name: "llen", arity: 2, groups: 0x1420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lmove":
		return row{name: "lmove", arity: 5, groups: 0x108400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "lmpop":
		return row{name: "lmpop", arity: -4, groups: 0x108400, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "lolwut":
		return row{name: "lolwut", arity: -1, groups: 0x1020}, true
	case "lpop":
		return row{name: "lpop", arity: -2, groups: 0x100420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lpos":
		return row{name: "lpos", arity: -3, groups: 0x9400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lpush":
		return row{name: "lpush", arity: -3, groups: 0x100420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lpushx":
		return row{name: "lpushx", arity: -3, groups: 0x100420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lrange":
		return row{name: "lrange", arity: 4, groups: 0x9400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lrem":
		return row{name: "lrem", arity: 4, groups: 0x108400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "lset":
		return row{name: "lset", arity: 4, groups: 0x108400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "ltrim":
		return row{name: "ltrim", arity: 4, groups: 0x108400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "memory":
		return row{name: "memory", arity: -2, container: true, groups: 0x8000}, true
	case "memory|doctor":
		return row{name: "memory doctor", arity: 2, groups: 0x8000}, true
	case "memory|help":
		return row{name: "memory help", arity: 2, groups: 0x8000}, true
	case "memory|malloc-stats":
		return row{name: "memory malloc-stats", arity: 2, groups: 0x8000}, true
	case "memory|purge":
		return row{name: "memory purge", arity: 2, groups: 0x8000}, true
	case "memory|stats":
		return row{name: "memory stats", arity: 2, groups: 0x8000}, true
	case "memory|usage":
		return row{name: "memory usage", arity: -3, groups: 0x9000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "mget":
		return row{name: "mget", arity: -2, groups: 0x41020, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "migrate":
		return row{name: "migrate", arity: -6, groups: 0x108210, forbidden: true}, true
	case "module":
		return row{name: "module", arity: -2, container: true, groups: 0x8000, forbidden: true}, true
	case "module|help":
		return row{name: "module help", arity: 2, groups: 0x8000, forbidden: true}, true
	case "module|list":
		return row{name: "module list", arity: 2, groups: 0x8011, forbidden: true}, true
	case "module|load":
		return row{name: "module load", arity: -3, groups: 0x8011, forbidden: true}, true
	case "module|loadex":
		return row{name: "module loadex", arity: -3, groups: 0x8011, forbidden: true}, true
	case "module|unload":
		return row{name: "module unload", arity: 3, groups: 0x8011, forbidden: true}, true
	case "monitor":
		return row{name: "monitor", arity: 1, groups: 0x8011, forbidden: true}, true
	case "move":
		return row{name: "move", arity: 3, groups: 0x100220, own: true}, true
	case "mset":
		return row{name: "mset", arity: -3, groups: 0x148000, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 2}}}, true
	case "msetnx":
		return row{name: "msetnx", arity: -3, groups: 0x148000, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 2}}}, true
	case "multi":
		return row{name: "multi", arity: 1, groups: 0x80020, own: true}, true
	case "object":
		return row{name: "object", arity: -2, container: true, groups: 0x8000}, true
	case "object|encoding":
		return row{name: "object encoding", arity: 3, groups: 0x9200, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "object|freq":
		return row{name: "object freq", arity: 3, groups: 0x9200, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "object|help":
		return row{name: "object help", arity: 2, groups: 0x8200}, true
	case "object|idletime":
		return row{name: "object idletime", arity: 3, groups: 0x9200, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "object|refcount":
		return row{name: "object refcount", arity: 3, groups: 0x9200, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "persist":
		return row{name: "persist", arity: 2, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "pexpire":
		return row{name: "pexpire", arity: -3, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "pexpireat":
		return row{name: "pexpireat", arity: -3, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "pexpiretime":
		return row{name: "pexpiretime", arity: 2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "pfadd":
		return row{name: "pfadd", arity: -2, groups: 0x100120, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "pfcount":
		return row{name: "pfcount", arity: -2, groups: 0x9100, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "pfdebug":
		return row{name: "pfdebug", arity: 3, groups: 0x108111, forbidden: true}, true
	case "pfmerge":
		return row{name: "pfmerge", arity: -2, groups: 0x108100, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: -1, step: 1}}}, true
	case "pfselftest":
		return row{name: "pfselftest", arity: 1, groups: 0x8111, forbidden: true}, true
	case "ping":
		return row{name: "ping", arity: -1, groups: 0x28, connection: true}, true
	case "psetex":
		return row{name: "psetex", arity: 4, groups: 0x148000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "psubscribe":
		return row{name: "psubscribe", arity: -2, groups: 0x8800, own: true, long: true}, true
	case "psync":
		return row{name: "psync", arity: -3, groups: 0x8011, forbidden: true}, true
	case "pttl":
		return row{name: "pttl", arity: 2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "publish":
		return row{name: "publish", arity: 3, groups: 0x820, own: true}, true
	case "pubsub":
		return row{name: "pubsub", arity: -2, container: true, groups: 0x8000}, true
	case "pubsub|channels":
		return row{name: "pubsub channels", arity: -2, groups: 0x8800, own: true}, true
	case "pubsub|help":
		return row{name: "pubsub help", arity: 2, groups: 0x8000}, true
	case "pubsub|numpat":
		return row{name: "pubsub numpat", arity: 2, groups: 0x8800}, true
	case "pubsub|numsub":
		return row{name: "pubsub numsub", arity: -2, groups: 0x8800, own: true}, true
	case "pubsub|shardchannels":
		return row{name: "pubsub shardchannels", arity: -2, groups: 0x8800, own: true}, true
	case "pubsub|shardnumsub":
		return row{name: "pubsub shardnumsub", arity: -2, groups: 0x8800, own: true}, true
	case "punsubscribe":
		return row{name: "punsubscribe", arity: -1, groups: 0x8800, own: true}, true
	case "quit":
		return row{name: "quit", arity: -1, groups: 0x28, own: true, connection: true}, true
	case "randomkey":
		return row{name: "randomkey", arity: 1, groups: 0x9200, own: true}, true
	case "readonly":
		return row{name: "readonly", arity: 1, groups: 0x28}, true
	case "readwrite":
		return row{name: "readwrite", arity: 1, groups: 0x28}, true
	case "rename":
		return row{name: "rename", arity: 3, groups: 0x108200, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "renamenx":
		return row{name: "renamenx", arity: 3, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "replconf":
		return row{name: "replconf", arity: -1, groups: 0x8011, forbidden: true}, true
	case "replicaof":
		return row{name: "replicaof", arity: 3, groups: 0x8011, forbidden: true}, true
	case "reset":
		return row{name: "reset", arity: 1, groups: 0x28, forbidden: true}, true
	case "restore":
		return row{name: "restore", arity: -4, groups: 0x108210, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "restore-asking":
		return row{name: "restore-asking", arity: -4, groups: 0x108210, forbidden: true}, true
	case "role":
		return row{name: "role", arity: 1, groups: 0x31}, true
	case "rpop":
		return row{name: "rpop", arity: -2, groups: 0x100420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "rpoplpush":
		return row{name: "rpoplpush", arity: 3, groups: 0x108400, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "rpush":
		return row{name: "rpush", arity: -3, groups: 0x100420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "rpushx":
		return row{name: "rpushx", arity: -3, groups: 0x100420, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "sadd":
		return row{name: "sadd", arity: -3, groups: 0x104020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "save":
		return row{name: "save", arity: 1, groups: 0x8011, forbidden: true}, true
	case "scan":
		return row{name: "scan", arity: -2, groups: 0x9200, own: true}, true
	case "scard":
		return row{name: "scard", arity: 2, groups: 0x5020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "script":
		return row{name: "script", arity: -2, container: true, groups: 0x8000}, true
	case "script|debug":
		return row{name: "script debug", arity: 3, groups: 0xa000, forbidden: true}, true
	case "script|exists":
		return row{name: "script exists", arity: -3, groups: 0xa000}, true
	case "script|flush":
		return row{name: "script flush", arity: -2, groups: 0xa000}, true
	case "script|help":
		return row{name: "script help", arity: 2, groups: 0xa000}, true
	case "script|kill":
		return row{name: "script kill", arity: 2, groups: 0xa000}, true
	case "script|load":
		return row{name: "script load", arity: 3, groups: 0xa000, own: true}, true
	case "sdiff":
		return row{name: "sdiff", arity: -2, groups: 0xd000, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "sdiffstore":
		return row{name: "sdiffstore", arity: -3, groups: 0x10c000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: -1, step: 1}}}, true
	case "select":
		return row{name: "select", arity: 2, groups: 0x28, own: true, connection: true}, true
	case "set":
		return row{name: "set", arity: -3, groups: 0x148000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "setbit":
		return row{name: "setbit", arity: 4, groups: 0x108002, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "setex":
		return row{name: "setex", arity: 4, groups: 0x148000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "setnx":
		return row{name: "setnx", arity: 3, groups: 0x140020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "setrange":
		return row{name: "setrange", arity: 4, groups: 0x148000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "shutdown":
		return row{name: "shutdown", arity: -1, groups: 0x8011, forbidden: true}, true
	case "sinter":
		return row{name: "sinter", arity: -2, groups: 0xd000, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "sintercard":
		return row{name: "sintercard", arity: -3, groups: 0xd000, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "sinterstore":
		return row{name: "sinterstore", arity: -3, groups: 0x10c000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: -1, step: 1}}}, true
	case "sismember":
		return row{name: "sismember", arity: 3, groups: 0x5020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "slaveof":
		return row{name: "slaveof", arity: 3, groups: 0x8011, forbidden: true}, true
	case "slowlog":
		return row{name: "slowlog", arity: -2, container: true, groups: 0x8000}, true
	case "slowlog|get":
		return row{name: "slowlog get", arity: -2, groups: 0x8011, own: true}, true
	case "slowlog|help":
		return row{name: "slowlog help", arity: 2, groups: 0x8000}, true
	case "slowlog|len":
		return row{name: "slowlog len", arity: 2, groups: 0x8011}, true
	case "slowlog|reset":
		return row{name: "slowlog reset", arity: 2, groups: 0x8011}, true
	case "smembers":
		return row{name: "smembers", arity: 2, groups: 0xd000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "smismember":
		return row{name: "smismember", arity: -3, groups: 0x5020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "smove":
		return row{name: "smove", arity: 4, groups: 0x104020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "sort":
		return row{name: "sort", arity: -2, groups: 0x11c410, own: true}, true
	case "sort_ro":
		return row{name: "sort_ro", arity: -2, groups: 0x1d410, own: true}, true
	case "spop":
		return row{name: "spop", arity: -2, groups: 0x104020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "spublish":
		return row{name: "spublish", arity: 3, groups: 0x820, own: true}, true
	case "srandmember":
		return row{name: "srandmember", arity: -2, groups: 0xd000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "srem":
		return row{name: "srem", arity: -3, groups: 0x104020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "sscan":
		return row{name: "sscan", arity: -3, groups: 0xd000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "ssubscribe":
		return row{name: "ssubscribe", arity: -2, groups: 0x8800, own: true, long: true}, true
	case "strlen":
		return row{name: "strlen", arity: 2, groups: 0x41020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "subscribe":
		return row{name: "subscribe", arity: -2, groups: 0x8800, own: true, long: true}, true
	case "substr":
		return row{name: "substr", arity: 4, groups: 0x49000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "sunion":
		return row{name: "sunion", arity: -2, groups: 0xd000, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "sunionstore":
		return row{name: "sunionstore", arity: -3, groups: 0x10c000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: -1, step: 1}}}, true
	case "sunsubscribe":
		return row{name: "sunsubscribe", arity: -1, groups: 0x8800, own: true}, true
	case "swapdb":
		return row{name: "swapdb", arity: 3, groups: 0x100230, forbidden: true}, true
	case "sync":
		return row{name: "sync", arity: 1, groups: 0x8011, forbidden: true}, true
	case "time":
		return row{name: "time", arity: 1, groups: 0x20}, true
	case "touch":
		return row{name: "touch", arity: -2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "ttl":
		return row{name: "ttl", arity: 2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "type":
		return row{name: "type", arity: 2, groups: 0x1220, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "unlink":
		return row{name: "unlink", arity: -2, groups: 0x100220, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "unsubscribe":
		return row{name: "unsubscribe", arity: -1, groups: 0x8800, own: true}, true
	case "unwatch":
		return row{name: "unwatch", arity: 1, groups: 0x80020}, true
	case "wait":
		return row{name: "wait", arity: 3, groups: 0x8008, long: true}, true
	case "watch":
		return row{name: "watch", arity: -2, groups: 0x80020, keys: [2]keySpec{{kind: keyRange, index: 1, last: -1, step: 1}}}, true
	case "xack":
		return row{name: "xack", arity: -4, groups: 0x120020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xadd":
		return row{name: "xadd", arity: -5, groups: 0x120020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xautoclaim":
		return row{name: "xautoclaim", arity: -6, groups: 0x120020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xclaim":
		return row{name: "xclaim", arity: -6, groups: 0x120020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xdel":
		return row{name: "xdel", arity: -3, groups: 0x120020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xgroup":
		return row{name: "xgroup", arity: -2, container: true, groups: 0x8000}, true
	case "xgroup|create":
		return row{name: "xgroup create", arity: -5, groups: 0x128000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xgroup|createconsumer":
		return row{name: "xgroup createconsumer", arity: 5, groups: 0x128000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xgroup|delconsumer":
		return row{name: "xgroup delconsumer", arity: 5, groups: 0x128000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xgroup|destroy":
		return row{name: "xgroup destroy", arity: 4, groups: 0x128000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xgroup|help":
		return row{name: "xgroup help", arity: 2, groups: 0x28000}, true
	case "xgroup|setid":
		return row{name: "xgroup setid", arity: -5, groups: 0x128000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xinfo":
		return row{name: "xinfo", arity: -2, container: true, groups: 0x8000}, true
	case "xinfo|consumers":
		return row{name: "xinfo consumers", arity: 4, groups: 0x29000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xinfo|groups":
		return row{name: "xinfo groups", arity: 3, groups: 0x29000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xinfo|help":
		return row{name: "xinfo help", arity: 2, groups: 0x28000}, true
	case "xinfo|stream":
		return row{name: "xinfo stream", arity: -3, groups: 0x29000, keys: [2]keySpec{{kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "xlen":
		return row{name: "xlen", arity: 2, groups: 0x21020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xpending":
		return row{name: "xpending", arity: -3, groups: 0x29000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xrange":
		return row{name: "xrange", arity: -4, groups: 0x29000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xread":
		return row{name: "xread", arity: -4, groups: 0x29004, own: true, long: true}, true
	case "xreadgroup":
		return row{name: "xreadgroup", arity: -7, groups: 0x128004, own: true, long: true}, true
	case "xrevrange":
		return row{name: "xrevrange", arity: -4, groups: 0x29000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xsetid":
		return row{name: "xsetid", arity: -3, groups: 0x120020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "xtrim":
		return row{name: "xtrim", arity: -4, groups: 0x128000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zadd":
		return row{name: "zadd", arity: -4, groups: 0x110020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zcard":
		return row{name: "zcard", arity: 2, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zcount":
		return row{name: "zcount", arity: 4, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zdiff":
		return row{name: "zdiff", arity: -3, groups: 0x19000, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "zdiffstore":
		return row{name: "zdiffstore", arity: -4, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyCount, index: 2, count: 0, first: 1, step: 1}}}, true
	case "zincrby":
		return row{name: "zincrby", arity: 4, groups: 0x110020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zinter":
		return row{name: "zinter", arity: -3, groups: 0x19000, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "zintercard":
		return row{name: "zintercard", arity: -3, groups: 0x19000, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "zinterstore":
		return row{name: "zinterstore", arity: -4, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyCount, index: 2, count: 0, first: 1, step: 1}}}, true
	case "zlexcount":
		return row{name: "zlexcount", arity: 4, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zmpop":
		return row{name: "zmpop", arity: -4, groups: 0x118000, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "zmscore":
		return row{name: "zmscore", arity: -3, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zpopmax":
		return row{name: "zpopmax", arity: -2, groups: 0x110020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zpopmin":
		return row{name: "zpopmin", arity: -2, groups: 0x110020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrandmember":
		return row{name: "zrandmember", arity: -2, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrange":
		return row{name: "zrange", arity: -4, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrangebylex":
		return row{name: "zrangebylex", arity: -4, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrangebyscore":
		return row{name: "zrangebyscore", arity: -4, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrangestore":
		return row{name: "zrangestore", arity: -5, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyRange, index: 2, last: 0, step: 1}}}, true
	case "zrank":
		return row{name: "zrank", arity: 3, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrem":
		return row{name: "zrem", arity: -3, groups: 0x110020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zremrangebylex":
		return row{name: "zremrangebylex", arity: 4, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zremrangebyrank":
		return row{name: "zremrangebyrank", arity: 4, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zremrangebyscore":
		return row{name: "zremrangebyscore", arity: 4, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrevrange":
		return row{name: "zrevrange", arity: -4, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrevrangebylex":
		return row{name: "zrevrangebylex", arity: -4, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrevrangebyscore":
		return row{name: "zrevrangebyscore", arity: -4, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zrevrank":
		return row{name: "zrevrank", arity: 3, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zscan":
		return row{name: "zscan", arity: -3, groups: 0x19000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zscore":
		return row{name: "zscore", arity: 3, groups: 0x11020, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}}}, true
	case "zunion":
		return row{name: "zunion", arity: -3, groups: 0x19000, keys: [2]keySpec{{kind: keyCount, index: 1, count: 0, first: 1, step: 1}}}, true
	case "zunionstore":
		return row{name: "zunionstore", arity: -4, groups: 0x118000, keys: [2]keySpec{{kind: keyRange, index: 1, last: 0, step: 1}, {kind: keyCount, index: 2, count: 0, first: 1, step: 1}}}, true
	}
	return row{}, false
}
