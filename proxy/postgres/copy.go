package postgres

// copyState is what is known of the last COPY FROM STDIN of a connection.
type copyState struct {
	number    uint64        // how many were sent
	may       bool          // the last may still read data
	query     bool          // it is of a Query, which may have another behind it
	reads     bool          // the server reads data, or has ended that with an error on its way
	earlyEnds int           // CopyDone and CopyFail that were sent before the server read data
	known     chan struct{} // closed when it reads, or cannot; nil while nobody waits for that
}

// begin notes that a COPY is sent, and returns its number. A server that skips does not
// begin it.
func (c *copyState) begin(kind byte, skipped bool) uint64 {
	c.end()
	c.number++
	c.may, c.query = !skipped, kind == msgQuery
	return c.number
}

// end notes that the last COPY does not read data, or no longer.
func (c *copyState) end() {
	c.may, c.reads, c.earlyEnds = false, false, 0
	c.wake()
}

// endOf notes the end of the COPY of a number.
func (c *copyState) endOf(number uint64) {
	if number == c.number {
		c.end()
	}
}

// wake ends a wait for what the last COPY does.
func (c *copyState) wake() {
	if c.known != nil {
		close(c.known)
		c.known = nil
	}
}

// copyBegins is called when the server begins to read COPY data. It reports false if no
// statement that was sent does.
func (t *pipeline) copyBegins() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, c := t.head.current(), &t.copy
	switch {
	case r == nil || r.copy == 0:
		return false
	case r.copy != c.number || !c.may:
		// The plugin has sent what ends the data.
	case c.earlyEnds > 0:
		c.earlyEnds--
	default:
		c.reads = true
		c.wake()
	}
	return true
}

// copyDone is called for a CopyDone or CopyFail. A Query may go on with another COPY.
func (t *pipeline) copyDone() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch c := &t.copy; {
	case !c.query:
		c.end()
	case c.reads:
		c.reads = false
	case c.may:
		c.earlyEnds++
	}
}

// copyDoubt returns nil if it is known whether the server reads COPY data, otherwise what is
// closed once it is.
func (t *pipeline) copyDoubt() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.copy.may || t.copy.reads {
		return nil
	}
	if t.copy.known == nil {
		t.copy.known = make(chan struct{})
	}
	return t.copy.known
}

// copyReads reports whether the server reads COPY data, or has ended that with an error
// which has not come yet.
func (t *pipeline) copyReads() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.copy.reads
}

// leaveCopy is called before a message that is no part of COPY data. It reports whether the
// server may read data, which a CopyFail must end then.
func (t *pipeline) leaveCopy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	may := t.copy.may
	t.copy.end()
	return may
}
