package session

// TailBytes is the last bytes that were read from a connection.
type TailBytes [7]byte

// Add takes in bytes that were read.
func (l *TailBytes) Add(b []byte) {
	if len(b) >= len(l) {
		copy(l[:], b[len(b)-len(l):])
		return
	}
	copy(l[:], l[len(b):])
	copy(l[len(l)-len(b):], b)
}

// Alert returns the fatal alert that was read last, 0 for none. With TLS 1.3 a
// client that refuses the certificate encrypts its alert (RFC 8446, section 6), but
// OpenSSL sends it in clear, as it has sent nothing encrypted so far. crypto/tls
// cannot decrypt that and returns an error of its own, bad_record_mac.
func (l *TailBytes) Alert() uint8 {
	const alert, fatal = 21, 2
	if l[0] == alert && l[1] == 3 && l[3] == 0 && l[4] == 2 && l[5] == fatal {
		return l[6]
	}
	return 0
}
