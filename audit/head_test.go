package audit

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// A log of an earlier version, whose head has no number of refused bytes, is opened
// without a doubt.
func TestHeadOfEarlierVersion(t *testing.T) {
	dir := t.TempDir()
	write := func() {
		log, err := Open(Config{StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := log.Record(&authz.Record{Time: time.Now(), Kind: authz.KindReload}); err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write()
	key, err := LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	at, err := loadHead(dir, headName, &key)
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(oldMagic)
	for _, n := range []uint64{at.seq, at.first, uint64(at.size), at.kept} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, at.hash[:]...)
	mac := key.headMAC()
	mac.Write(b)
	slots := make([]byte, headLen)
	copy(slots[int(at.seq%2)*slotRoom:], mac.Sum(b))
	if err := os.WriteFile(filepath.Join(dir, headName), slots, 0o600); err != nil {
		t.Fatal(err)
	}
	write()
	report, err := Verify(VerifyConfig{File: filepath.Join(dir, DefaultFile), StateDir: dir})
	if err != nil || report.Problem != nil || report.Records != 2 {
		t.Errorf("report %+v: %v", report, err)
	}
}
