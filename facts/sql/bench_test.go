package sql

import (
	"testing"
)

// join has 240 bytes, as a report of an application.
const join = "SELECT o.id, o.total, c.name, sum(i.price * i.amount) AS value FROM public.orders o JOIN customers c ON c.id = o.customer_id " +
	"LEFT JOIN items i ON i.order_id = o.id WHERE o.created >= $1 AND c.country IN ('DE', 'FR') GROUP BY o.id, c.name ORDER BY 4 DESC LIMIT 50"

func BenchmarkRead(b *testing.B) {
	for name, text := range map[string]string{
		"pgbench": "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
		"join":    join,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r := Read(text); r.Unreadable != "" {
					b.Fatal(r.Unreadable)
				}
			}
		})
	}
}

func BenchmarkMask(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Mask(join)
	}
}

func BenchmarkCache(b *testing.B) {
	c := NewCache(func(text string) Reading { return Read(text) })
	text := []byte(join)
	b.ReportAllocs()
	for b.Loop() {
		c.Get(text)
	}
}
