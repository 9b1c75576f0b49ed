// Package unixsock binds Unix sockets that no other user can replace, and
// identifies the processes that connect to them.
//
// [Listen] binds a socket: it checks the directory ([CheckDir]), takes a lock so
// that two starters do not race ([Acquire]), removes the socket of a dead process
// ([RemoveStale]), and creates the new socket with its final mode. [PeerOf] and
// [CheckPeer] report who connected.
//
// [CheckPath] and [CheckDir] are the only answer of this module to the question
// which users may replace a path. They serve files as well as sockets: a state
// directory, a file of revocations and a socket are lost in the same way, to
// whoever owns or may write a directory above them.
//
// The package imports the standard library and golang.org/x/sys only.
package unixsock
