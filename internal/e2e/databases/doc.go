// Package databases holds the tests that run real clients of databases as plugins:
// each client takes the same steps directly, as a user with rights of its own, and
// through the sidecar under `chaperone run`, with a user that Vault leases. It must
// print the same both times, but for the statements that are not granted: those show
// the database's own error with the reason and the decision.
//
// The package has no code of its own.
package databases
