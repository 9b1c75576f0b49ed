// Package scrub finds a credential in an upstream's answer, in the encodings that
// programs give to text, and replaces it by asterisks.
//
// All secrets are searched for at once, by the algorithm of Wu and Manber (A Fast
// Algorithm for Multi-Pattern Searching, University of Arizona TR 94-17): most of
// a body is skipped, so that forty patterns cost little more than one. Text without
// escapes costs one search for a byte per escape character.
//
// These encodings are found, each with the case that needs it:
//
//   - the secret itself, and its UTF-16: echoes of a header, and answers of Windows
//     programs
//   - escapes of JSON and programs (backslash), URLs (percent) and HTML and XML
//     (ampersand), of any of the characters: error pages, JSON errors, redirects.
//     The names of entities are those of PHP's htmlentities with ENT_HTML5
//   - two escapes over one another: the body of an upstream as a string in the JSON
//     of a gateway, JSON in a form, JSON shown on a debug page
//   - base64 in each alignment, either alphabet and with line breaks: Basic
//     credentials, gRPC's binary metadata, cookies, PEM and MIME
//   - hexadecimal with what programs put between the bytes: dumps, fingerprints, Go's
//     %x and %#v
//   - decimal numbers of bytes: Node's JSON of a Buffer ({"type":"Buffer","data":[...]},
//     also indented), Go's %v of a []byte, Python's list(bytes)
//   - runs of 12 letters and digits of a secret, and of 16 of its base64, because no
//     encoder of text changes them. Words and names, and the header of a JSON Web
//     Token, are not secret and not searched for
//
// Compressed bodies are decompressed first ([Decode]). Escapes are found from the
// first one on: before it the secret is plain, and behind it the text is read
// character by character.
//
// Each byte of a secret that is found is overwritten, so that lengths, frames and
// offsets stay true.
//
// How much of a stream is held back, and for how long, does not depend on the secret:
// the end of a line that is not whole waits, as far as a secret could have begun in
// it, for the rest if the length of the stream is known, and otherwise for 20 ms; a
// line that looks cut because it is long waits for the next. The end of a frame that
// is not whole waits for the rest. This delays all texts of the same kinds of
// characters alike. It reveals how long the longest encoding of the secret is, and
// no more. A redaction reveals that it held the secret, or all of
// it but an eighth.
//
// These cannot be found: a secret that was encrypted, hashed, compressed inside a
// format, reversed, or given out one character an answer.
//
// These are not found: three escapes over one another (so deep, only characters that
// are escaped at all matter, which most tokens do not have); the quoted-printable
// encoding of mail, which HTTP does not use (RFC 9112,
// appendix B.5); base32 and other bases; numbers of more than a byte or
// with signs; dumps with offsets or text beside the bytes; base64 of base64; doubled
// quotes; a secret that is split between two fields, frames, messages, events or, in a
// stream of unknown length, pauses of more than 20 ms (the part after the pause is
// found if no other text is between); one that ends in the middle and lacks more than
// an eighth; one in an unknown escape and without a long run. A caller that searches
// some content types only leaves the choice to anybody who can ask for a type, as with
// Accept: [SniffingReader] is for the others.
package scrub
