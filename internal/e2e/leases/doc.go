// Package leases holds the tests of database sessions while their leases rotate, end and
// are lost, and while the database or Vault is away: a real PostgreSQL, a real Vault and a
// plugin under `chaperone run`, which keeps sessions open and reports what each sees.
//
// The package has no code of its own.
package leases
