package postgres

import (
	"strings"
	"testing"
)

func TestPsqlReadsAGrantedTableAndIsRefusedAnother(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	out, err := w.psql("-c", "SELECT name FROM orders WHERE id = 7", "-c", "SELECT value FROM secrets", "-c", "SELECT 1")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || lines[0] != "order 7" || lines[len(lines)-1] != "1" || !strings.Contains(out, "ERROR:  42501: statement_not_granted") || strings.Contains(out, "top") {
		t.Fatalf("psql printed:\n%s\n%v", out, err)
	}
}
