// Package attack holds the attacks on a sidecar: a hostile plugin and a hostile upstream
// work together to get a credential out, through every listener and with every kind of
// credential, against the built command. The package has no code of its own.
package attack
