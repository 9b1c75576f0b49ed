// Package sidecar composes one sidecar from its parts: it confines a plugin, decides and
// records each of its accesses, meters it in the kernel, and takes access back while it
// runs.
//
// [New] makes the parts from a [Config] and starts nothing. [Sidecar.Listen] binds every
// socket, attaches the kernel programs and puts the policy in force. [Sidecar.Run] serves
// until its context ends. [Sidecar.RunPlugin] does all of it around a plugin that it
// starts. [Sidecar.Close] gives back what New took.
//
// The rest is for commands while no sidecar runs: [Examine] finds what is missing on a
// machine, [RevokeOffline] and [RestoreOffline] change the revocations of a stateDir,
// [AcceptState] takes a stateDir that has lost its history, and [Detach] removes what a
// killed sidecar left.
package sidecar
