package embedded

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
)

// sample is the image of a small store with several levels and free pages, and its content.
func sample(t testing.TB, records int) ([]byte, map[string]string) {
	t.Helper()
	s, err := Open(Config{Path: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	for i := range records {
		if err := s.Txn(ctx, store.Put(fmt.Sprintf("key/%03d", i*7%records), bytes.Repeat([]byte{byte(i)}, 40))); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := s.Backup(ctx, &out); err != nil {
		t.Fatal(err)
	}
	content, _, err := readImage(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(content) != records {
		t.Fatalf("the check met %d records, want %d", len(content), records)
	}
	return out.Bytes(), content
}

func readImage(image []byte) (map[string]string, head, error) {
	content := map[string]string{}
	h, err := check(bytes.NewReader(image), int64(len(image)), func(key string, revision uint64, value []byte) {
		content[key] = fmt.Sprint(revision, string(value))
	})
	return content, h, err
}

// TestCheckSeesFlippedBits flips bits of a file in turn, each 251st from a random one on. Those that the
// check lets pass must not have changed what it read.
func TestCheckSeesFlippedBits(t *testing.T) {
	const step = 251
	for _, records := range []int{0, 3, 130} {
		image, want := sample(t, records)
		passed := 0
		for bit := rand.IntN(step); bit < len(image)*8; bit += step {
			image[bit/8] ^= 1 << (bit % 8)
			if got, _, err := readImage(image); err == nil {
				passed++
				if !maps.Equal(got, want) {
					t.Fatalf("%d records, bit %d: other content passed as sound", records, bit)
				}
			}
			image[bit/8] ^= 1 << (bit % 8)
		}
		t.Logf("%d records: %d of %d flips were in bits without meaning", records, passed, len(image)*8/step)
	}
}

func TestCheckSeesTruncation(t *testing.T) {
	image, _ := sample(t, 130)
	for size := 0; size < len(image); size += 512 {
		if _, _, err := readImage(image[:size]); err == nil {
			t.Errorf("a file cut from %d to %d bytes passed as sound", len(image), size)
		}
	}
}

// FuzzCheck patches a store's file at any place, and makes the checksum of the meta pages right again when
// seal is set, so that what they point to is fuzzed as well. The check must neither panic nor accept more
// or fewer records than its summary says.
func FuzzCheck(f *testing.F) {
	sound, _ := sample(f, 40)
	f.Add(uint32(0), []byte{}, false)
	f.Add(uint32(16+16), []byte{3}, true)                    // root page
	f.Add(uint32(16+32), []byte{0xff, 0xff}, true)           // free list
	f.Add(uint32(4096*2+8), []byte{1, 0, 255, 255, 1}, true) // a page's header
	f.Add(uint32(4096*3+16), bytes.Repeat([]byte{0xff}, 64), true)
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, seal bool) {
		image := bytes.Clone(sound)
		copy(image[int(at)%len(image):], patch)
		if seal {
			for _, page := range []int{0, 4096} {
				sum := fnv.New64a()
				sum.Write(image[page+pageHeaderSize : page+pageHeaderSize+metaSize-8])
				order.PutUint64(image[page+pageHeaderSize+metaSize-8:], sum.Sum64())
			}
		}
		content, h, err := readImage(image)
		if err == nil && uint64(len(content)) != h.Count {
			t.Errorf("%d records passed as %d", len(content), h.Count)
		}
	})
}

func FuzzRecord(f *testing.F) {
	raw, _ := encodeRecord([]byte("machine/a07"), 42, []byte("value"))
	f.Add([]byte("machine/a07"), raw)
	f.Add([]byte(""), []byte{})
	f.Fuzz(func(t *testing.T, key, raw []byte) {
		revision, sum, value, err := decodeRecord(key, raw)
		if err != nil {
			return
		}
		again, sumAgain := encodeRecord(key, revision, value)
		if !bytes.Equal(again, raw) || sum != sumAgain {
			t.Errorf("%x decodes to what encodes as %x", raw, again)
		}
	})
}
