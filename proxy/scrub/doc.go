// Package scrub finds a credential in what an upstream answers, in the
// encodings that programs give to text, and blanks it out.
//
// All secrets are searched for at once, by the algorithm of Wu and Manber (A Fast
// Algorithm for Multi-Pattern Searching, University of Arizona TR 94-17): most of
// a body is skipped, so that looking for forty patterns costs little more than
// looking for one. Patterns are the secret itself, its UTF-16, its base64 in each
// alignment, and its first bytes in hexadecimal and decimal numbers with what
// programs put between them. What has an escape in it, or the end of a line that
// base64 and mail have, is found from there: before the first of them everything
// is as it is, and behind it the rest is read character by character. Escapes are
// backslashes of JSON and programs, percent signs, HTML's and XML's ampersands, and
// mail's equals signs, each up to three times over one another. A text without any
// costs some searches for a byte.
//
// Runs of 12 letters and digits of a secret, and of 16 of its base64, are searched
// for by themselves, because no encoder of text changes them; words and names, and
// the header of a JSON Web Token, are not.
//
// What is found is overwritten byte for byte, so that lengths, frames and
// offsets stay true.
//
// What a stream holds back, and for how long, does not depend on the secret: the
// end of a line that is not whole waits, as far as a secret could have begun in
// it, for the rest where the length of the stream is known, and else for 20 ms; a
// line that looks cut because it is long waits for the next. The end of a frame
// that is not whole waits for the rest. This delays alike every text of the same
// kinds of characters. It tells how long the longest encoding of the secret is,
// and nothing else. Whether a text was blanked out tells whether it held the
// secret, or all of it but an eighth.
//
// What is not found, and cannot be: a secret that was encrypted, hashed,
// compressed inside a format, reversed, or given out one character an answer.
// What is not found either: base32 and other bases, numbers of more than a byte
// or with signs, dumps with offsets or text beside the bytes, base64 of base64, and doubled
// quotes. And: one that
// is split between two fields, frames, messages, events or, in a stream of unknown
// length, pauses of more than 20 ms (the part after the pause is found where
// nothing is between), that ends in the middle and lacks more than an eighth, or
// that is in an escape that is not known and has no such run. A caller that
// searches some types of content only leaves the choice to whoever can ask for a
// type, as with Accept: [SniffingReader] is for the others.
package scrub
