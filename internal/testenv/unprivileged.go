package testenv

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// unprivileged returns the identity to run a database as, nil if this process is not root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("find a user that is not root: %w", err)
	}
	uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(uidErr, gidErr)
}

// writeAs writes a file that only the user of a database may read.
func writeAs(as *syscall.Credential, path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil || as == nil {
		return err
	}
	return os.Chown(path, int(as.Uid), int(as.Gid))
}

// issueFor makes a CA for a server on loopback, writes its certificate to ca.pem of dir, and the
// server's certificate and key to cert and key.
func issueFor(as *syscall.Credential, dir, cert, key string, names []string) (ca *CA, caFile string, err error) {
	if ca, err = NewCA("chaperone test database"); err != nil {
		return nil, "", err
	}
	pair, err := ca.Issue(append(append([]string(nil), names...), net.IPv4(127, 0, 0, 1).String())...)
	if err != nil {
		return nil, "", err
	}
	caFile = filepath.Join(dir, "ca.pem")
	if err := errors.Join(ca.WriteFile(caFile), WritePair(pair, cert, key)); err != nil {
		return nil, "", err
	}
	if as != nil {
		err = os.Chown(key, int(as.Uid), int(as.Gid))
	}
	// The test may run as another user than the server.
	return ca, caFile, errors.Join(err, os.Chmod(dir, 0o755))
}
