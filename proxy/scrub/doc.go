// Package scrub finds a credential in an upstream's answers, in the encodings that
// programs give to text, and redacts it.
//
// All secrets are searched for at once, by the algorithm of Wu and Manber (A Fast
// Algorithm for Multi-Pattern Searching, University of Arizona TR 94-17): most of
// a body is skipped, so that forty patterns cost little more than one. Patterns are
// the secret itself, its UTF-16, its base64 in each alignment, and its first bytes
// in hexadecimal and decimal numbers with the separators that programs use. A form
// with an escape, or with the line breaks of base64 and mail, is found from the
// first of them: the text before it is unchanged, and the rest is read character by
// character. Escapes are backslashes of JSON and programs, percent signs, ampersands
// of HTML and XML, and equals signs of mail, nested up to three times. Text without
// escapes costs one IndexByte per escape character.
//
// Runs of 12 letters and digits of a secret, and of 16 of its base64, are patterns
// too, because no encoder of text changes them; words and names, and the header of a
// JSON Web Token, are not.
//
// A match is overwritten byte for byte, so that lengths, frames and offsets stay
// valid.
//
// A stream is held back independent of the secret: the end of an incomplete line
// waits, as far as a secret could have begun in it, for the rest if the length of
// the stream is known, and otherwise for 20 ms; a line that looks cut because it is
// long waits for the next. The end of an incomplete frame waits for the rest. This
// delays every text of the same kinds of characters alike. It reveals the length of
// the longest encoding of the secret. A redaction reveals that the text had the
// secret, or all of it but an eighth.
//
// A transformed secret cannot be found: encrypted, hashed, compressed inside a
// format, reversed, or sent as one character an answer. Not implemented: base32 and
// other bases, numbers of more than a byte or with signs, dumps with offsets or text
// beside the bytes, base64 of base64, and doubled quotes; a secret that is split
// between two fields, frames, messages, events or, in a stream of unknown length,
// pauses of more than 20 ms (the part after the pause is found if it directly
// follows); one that ends in the middle and lacks more than an eighth; one in an
// unknown escape without such a run. A caller that searches some content types only
// leaves the choice to the client, for example by Accept: [SniffingReader] is for the
// others.
package scrub
