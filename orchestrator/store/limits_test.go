package store_test

import (
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

func TestCheckKey(t *testing.T) {
	for _, key := range []string{"a", "a/b", "a b", "ü/ß", "a%2Fb", "a?b#c", "a/.x", "..a", strings.Repeat("k", store.MaxKey)} {
		if err := store.CheckKey(key); err != nil {
			t.Errorf("CheckKey(%q) = %v, want nil", key, err)
		}
	}
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "a/../b", "a\x00b", "a\nb", "a\x7f",
		"\xff", strings.Repeat("k", store.MaxKey+1)} {
		if err := store.CheckKey(key); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckKey(%q) = %v, want fault.Invalid", key, err)
		}
	}
}

func TestCheckPrefix(t *testing.T) {
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/.x"} {
		if err := store.CheckPrefix(prefix); err != nil {
			t.Errorf("CheckPrefix(%q) = %v, want nil", prefix, err)
		}
	}
	for _, prefix := range []string{"/", "/a", "a//", "a//b", "..", "a/..", "a/.", "\xff"} {
		if err := store.CheckPrefix(prefix); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckPrefix(%q) = %v, want fault.Invalid", prefix, err)
		}
	}
}

func TestLeaseOptionsValidateNamesTheOption(t *testing.T) {
	good := store.LeaseOptions{TTL: 15 * time.Second, Delay: 5 * time.Second, Owner: "a"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*store.LeaseOptions){
		"TTL":   func(o *store.LeaseOptions) { o.TTL = time.Second },
		"Delay": func(o *store.LeaseOptions) { o.Delay = time.Hour },
		"Owner": func(o *store.LeaseOptions) { o.Owner = "" },
	} {
		o := good
		change(&o)
		if err := o.Validate(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("bad %s: %v, want fault.Invalid that names it", name, err)
		}
	}
}
