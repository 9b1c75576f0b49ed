package resp

import "testing"

// TestEmptyLine reads the line that redis-cli --pipe puts behind its input, in all parts.
func TestEmptyLine(t *testing.T) {
	var q Request
	if n, err := q.Scan([]byte("\r")); n != 0 || err != nil {
		t.Errorf("half of an empty line is %d bytes, %v", n, err)
	}
	if n, err := q.Scan([]byte("\r\n*1\r\n$4\r\nPING\r\n")); n != 2 || err != nil || q.Argc() != 0 {
		t.Errorf("an empty line is %d bytes with %d arguments, %v", n, q.Argc(), err)
	}
	q.Reset()
	if n, err := q.Scan([]byte("\r\r\n")); err == nil {
		t.Errorf("a line of CR is read, %d bytes", n)
	}
}
