// Package gameday scores an exercise for incident responders: a plugin turns rogue, and a
// responder ends its access, keeps the evidence and states what leaked.
//
// A [Measurement] is what one exercise measured: times of the responder from the audit log
// ([Observer]), and bytes from the servers that the plugin sent them to. [Score] is a pure
// function of it. A figure that was not measured has no points, and the card states why.
package gameday
