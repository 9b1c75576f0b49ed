//go:build race

package postgres

// underRace is set where the race detector has a sync.Pool forget on purpose.
const underRace = true
