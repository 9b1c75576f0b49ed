package configs

import (
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
)

// redisMatcher returns the condition of a rule on commands of Redis: those that its names
// and categories stand for, and those of every connection.
func redisMatcher(c authz.Content) *authz.Matcher {
	m := matcherOf(authz.ProtocolRedis, c)
	m.Writes = true // sessions of Redis have no read-only mode
	m.Facts = append(m.Facts, factsOf(authz.FactCommand, resp.Always())...)
	for _, name := range c.Commands {
		commands, err := resp.Expand(name)
		if err != nil {
			continue // the check reports it
		}
		m.Facts = append(m.Facts, factsOf(authz.FactCommand, commands)...)
	}
	m.Facts = append(m.Facts, factsOf(authz.FactKey, c.Keys)...)
	m.Facts = append(m.Facts, factsOf(authz.FactChannel, c.Channels)...)
	return m
}

// redis checks a rule of scheme redis.
func (c contentCheck) redis() {
	content := c.rule.Content
	if len(content.Databases) == 0 {
		c.report(c.path+".databases", "is missing; write the numbers of the databases, as in [0]")
	}
	c.names("databases", databaseNames(content), func(name string, pattern bool) string {
		n, err := strconv.ParseUint(name, 10, 31)
		if pattern || err != nil || strconv.FormatUint(n, 10) != name {
			return strconv.Quote(clip(name)) + " is not the number of a database; write one as in 0, or \"*\" for every one"
		}
		return ""
	})
	if len(content.Commands) == 0 && content.Opaque != authz.OpaqueAllow {
		c.report(c.path+".commands", `is missing; name the commands, as in ["@read"] or [get]`)
	}
	c.opaque("scripts and functions as EVAL and FCALL")
	c.names("commands", content.Commands, command)
	for field, names := range map[string][]string{"keys": content.Keys, "channels": content.Channels} {
		c.names(field, names, func(name string, _ bool) string {
			if strings.ContainsFunc(name, isControl) {
				return strconv.Quote(clip(name)) + " holds a control byte; write text"
			}
			return ""
		})
	}
}

// command returns what is wrong with the name of a command or a category of commands.
func command(name string, pattern bool) string {
	word := name
	if pattern {
		word += everyName
	}
	_, err := resp.Expand(word)
	switch {
	case err == nil:
		return ""
	case resp.Forbidden(word):
		return strconv.Quote(clip(word)) + " is never granted: it changes the server or undoes what decisions rest on; remove it"
	}
	known, _ := resp.Expand("@all")
	return unknownWord(word, "command of Redis 7 or a category as in @read", append(known, redisCategories()...))
}

// redisCategories returns the categories of commands (https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/).
func redisCategories() []string {
	return []string{
		"@all", "@admin", "@bitmap", "@blocking", "@connection", "@dangerous", "@fast", "@geo", "@hash", "@hyperloglog", "@keyspace", "@list",
		"@pubsub", "@read", "@scripting", "@set", "@slow", "@sortedset", "@stream", "@string", "@transaction", "@write",
	}
}
