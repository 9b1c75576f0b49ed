package audit

import "time"

// Hold keeps every record waiting, as a slow disk does, until release is called.
func (l *Log) Hold() (release func()) {
	l.mu.Lock()
	return l.mu.Unlock
}

// Queued returns how many callers wait for their records to be written.
func (l *Log) Queued() int {
	n := 0
	for e := l.queue.last.Load(); e != nil; e = e.next {
		n++ // the last that is counted stands for the caller that leads
	}
	return n
}

// Park makes callers park at once, as on a single CPU.
func (l *Log) Park() { l.queue.looks = 0 }

// FormatTimes formats times one after the other, as records have them.
func FormatTimes(times []time.Time) (texts []string) {
	var c clock
	for _, t := range times {
		texts = append(texts, string(c.append(nil, t)))
	}
	return texts
}
