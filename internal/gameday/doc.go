// Package gameday runs an exercise for incident responders: it starts `chaperone run` with a
// plugin of its own ([Rogue]), which behaves, and then turns: it leaks by what it is granted,
// and tries every other way out. A responder ends its access with the product's commands.
//
// Everything that can be reached is in this process: servers on loopback, which count what
// they receive, so that the score ([Run]) does not depend on what the sidecar reports of
// itself. Before the plugin starts, each of them is proved to count.
//
// It ends only the processes that it started. Everything that an exercise writes is in its
// folder, but for the sidecar's entries in the host's registry, which the sidecar removes.
package gameday
