package session

import "syscall"

const (
	// filesPerPair is how many descriptors two spliced connections hold: themselves,
	// and the ends of a pipe each way (splice(2)).
	filesPerPair = 6
	// reservedShare is the part of the descriptors that connections are not given:
	// for exits, files, the kernel half, and whoever comes to revoke.
	reservedShare = 4
)

// MaxConnsForRlimit returns how many connections there may be before the process can
// open nothing any more, the admin socket's connections included. With a relay
// each of the plugin's may have one at an exit.
func MaxConnsForRlimit(relayed bool) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 1 // the limit is unknown, and it has to serve
	}
	return connsForFiles(files.Cur, relayed)
}

func connsForFiles(files uint64, relayed bool) int {
	each := uint64(filesPerPair)
	if relayed {
		each += filesPerPair
	}
	return int(max(min(files, 1<<30)/reservedShare*(reservedShare-1)/each, 1))
}
