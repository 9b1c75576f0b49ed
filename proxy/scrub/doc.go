// Package scrub finds a credential in what an upstream answers, in the
// spellings that programs give to text, and blanks it out.
//
// All spellings of all secrets are searched for at once, by the algorithm of
// Wu and Manber (A Fast Algorithm for Multi-Pattern Searching, University of
// Arizona TR 94-17): most of a body is skipped, so that looking for forty
// needles costs little more than looking for one.
//
// What is found is overwritten byte for byte, so that lengths, frames and
// offsets stay true. What is not found, and cannot be: a secret that was
// encrypted, hashed, compressed inside a format, reversed, split between two
// fields, or given out one character an answer.
package scrub
