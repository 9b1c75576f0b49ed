// Package ratelimit holds the small pieces that keep a program from repeating itself
// too often: a rate limiter ([Bucket]), delays after failures ([Backoff]), a circuit
// breaker ([Breaker]) and a sampler of events ([Sampler]).
//
// Time is an argument everywhere: callers with a clock of their own, as one that
// counts while the machine sleeps, pass that. No piece but Sampler locks; the caller
// holds a lock of its own.
//
// The package imports the standard library only.
package ratelimit
