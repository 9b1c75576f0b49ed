// Package report measures how a governance repository is used: how long requests take and
// where, how often they are sent back, which exemptions are still open, and which findings
// wait for a remedy. Every figure comes from the times that people and tools signed, so that
// nobody reports a review as faster than it was.
package report
