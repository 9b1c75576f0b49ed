// Package database has what every database protocol shares: the admission of a session,
// its address, its login and its terms of TLS, the decision of each statement, and the
// ends of a session. A protocol has a package of its own, which reads the plugin's messages
// and speaks with the server.
//
// A session is one connection of the plugin and one to the server. It goes through these
// stages, and is cut in each of them:
//
//  1. [Front.AcceptTLS], if the plugin asks for TLS. Only the plugin's socket exists.
//  2. [Front.Open] decides on the connection, leases the credential and registers the
//     session: from now on a revocation, an expiry or a lost lease cuts it.
//  3. [Session.Dial] and the login, by [Session.Context], which ends with the session.
//  4. [Session.Serve]: the protocol relays. [Session.Admit] decides on each statement, and
//     a statement that runs is decided again with the session.
//  5. [Session.End] writes the record of the end.
//
// A cut closes the server's side first, then attempts the protocol's last message to the
// plugin without waiting for anything, and resets the plugin's side.
package database
