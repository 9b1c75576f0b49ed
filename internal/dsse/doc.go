// Package dsse signs and verifies documents: DSSE envelopes with ed25519 keys, and a
// trust root that states which person's key may sign which kind of document.
//
// An envelope is a Dead Simple Signing Envelope, version 1.0
// (https://github.com/secure-systems-lab/dsse). Its payload type is part of what is
// signed, so that an approval can never be presented as a grant. Every kind of document
// has a payload type of its own, [Kind.PayloadType], and [Root.Verify] refuses an envelope
// of another type before it decodes the payload.
//
// A [Root] lists roles. Each role has keys, each key belongs to an identity, and the role
// signs the kinds that it lists. Thresholds count identities: two keys of one person are
// one signer. A new root is signed by the root role of the old one and by its own
// ([Root.Rotate]), as in The Update Framework, section 5.3.
//
// The package reads no clock and no file. A caller checks the times that a payload states.
package dsse
