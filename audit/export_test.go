package audit

// Hold keeps every record waiting, as a slow disk does, until release is called.
func (l *Log) Hold() (release func()) {
	l.mu.Lock()
	return l.mu.Unlock
}

// Queued returns how many callers wait for their records to be written.
func (l *Log) Queued() int {
	l.queue.mu.Lock()
	defer l.queue.mu.Unlock()
	return len(l.queue.waiting)
}
