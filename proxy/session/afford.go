package session

import "syscall"

const (
	// filesOfPair is how many descriptors two spliced connections hold: themselves,
	// and the ends of a pipe each way (splice(2)).
	filesOfPair = 6
	// reservedShare is the part of the descriptors that connections are not given:
	// for exits, files, the kernel half, and whoever comes to revoke.
	reservedShare = 4
)

// Affordable returns how many connections there may be before the process can
// open nothing any more, the admin socket's connections included. With a relay
// each of the plugin's may have one at an exit.
func Affordable(relayed bool) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 1 // nothing is known, and it has to serve
	}
	return connectionsOf(files.Cur, relayed)
}

func connectionsOf(files uint64, relayed bool) int {
	each := uint64(filesOfPair)
	if relayed {
		each += filesOfPair
	}
	return int(max(min(files, 1<<30)/reservedShare*(reservedShare-1)/each, 1))
}
