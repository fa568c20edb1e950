package ipmi

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/protocol"
	"github.com/bougou/go-ipmi/pkg/types"
)

var (
	testK1 = bytes.Repeat([]byte{1}, 20)
	testK2 = bytes.Repeat([]byte{2}, 20)
)

const testConsole = 0x11223345

// answer seals a response as a BMC does.
func answer(t testing.TB, seq uint32, msg []byte, flags uint8, k1, k2 []byte) []byte {
	t.Helper()
	s := session{bmcID: testConsole, out: seq - 1, k1: k1, k2: k2}
	pkt, err := s.seal(msg)
	if err != nil {
		t.Fatal(err)
	}
	pkt[5] = flags
	signed := len(pkt) - authCode
	mac, err := crypto.IntegrityHMAC(integrityAlg, pkt[4:signed], k1)
	if err != nil {
		t.Fatal(err)
	}
	return append(pkt[:signed:signed], mac[:authCode]...)
}

func TestUnsealTakesOnlyProof(t *testing.T) {
	msg := protocol.BuildIPMIResponse(0, 1, 7, 0, []byte{0, 0, 0})
	const both = types.PayloadFlagEncrypted | types.PayloadFlagAuthenticated
	good := answer(t, 5, msg, both, testK1, testK2)
	if got, seq, ok := unseal(good, testConsole, 4, testK1, testK2); !ok || seq != 5 || !bytes.Equal(got, msg) {
		t.Fatalf("%x, %d, %t", got, seq, ok)
	}
	plain := protocol.BuildRMCPPlusPacket(uint8(types.PayloadTypeIPMI), 0, testConsole, 6, msg)
	v15 := append([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(msg))}, msg...)
	for name, pkt := range map[string][]byte{
		"plain, as anybody can send it": plain,
		"IPMI 1.5":                      v15,
		"encrypted only":                answer(t, 6, msg, types.PayloadFlagEncrypted, testK1, testK2),
		"authenticated only":            answer(t, 6, msg, types.PayloadFlagAuthenticated, testK1, testK2),
		"another key":                   answer(t, 6, msg, both, testK2, testK2),
		"cut":                           good[:len(good)-1],
		"empty":                         nil,
	} {
		if _, _, ok := unseal(pkt, testConsole, 4, testK1, testK2); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, ok := unseal(good, testConsole, 5, testK1, testK2); ok {
		t.Error("a replay was accepted")
	}
	if _, _, ok := unseal(good, testConsole+1, 4, testK1, testK2); ok {
		t.Error("another session's packet was accepted")
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if i == 1 || i == 2 {
			continue // reserved and RMCP sequence: outside what is authenticated, and without meaning
		}
		if _, _, ok := unseal(bad, testConsole, 4, testK1, testK2); ok {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
}

func TestSealIsRead(t *testing.T) {
	s := session{bmcID: testConsole, k1: testK1, k2: testK2, out: 0xfffffffe}
	for n := range 70 { // all paddings, and the sequence number's wrap
		msg := bytes.Repeat([]byte{byte(n)}, n)
		last := s.out
		pkt, err := s.seal(msg)
		if err != nil {
			t.Fatal(err)
		}
		if (len(pkt)-4-authCode)%4 != 0 {
			t.Errorf("%d bytes: authenticated part is not a multiple of four", n)
		}
		got, seq, ok := unseal(pkt, testConsole, last, testK1, testK2)
		if !ok || !bytes.Equal(got, msg) || seq == 0 {
			t.Fatalf("%d bytes under %d: %x, %t", n, seq, got, ok)
		}
	}
}

// FuzzUnseal: no datagram panics, and none without the key gets through.
func FuzzUnseal(f *testing.F) {
	msg := protocol.BuildIPMIResponse(0, 1, 7, 0, []byte{1, 0, 0})
	f.Add(answer(f, 5, msg, 0xC0, testK1, testK2))
	f.Add(protocol.BuildRMCPPlusPacket(0, 0xC0, testConsole, 5, bytes.Repeat([]byte{9}, 48)))
	f.Add([]byte{6, 0, 0xff, 7, 6, 0xC0})
	other := bytes.Repeat([]byte{3}, 20)
	f.Fuzz(func(t *testing.T, pkt []byte) {
		if _, _, ok := unseal(pkt, testConsole, 0, other, testK2); ok {
			t.Error("accepted under a key that nobody used")
		}
		// With a valid authentication code the parts behind it are reached too.
		if len(pkt) > 6 {
			pkt = bytes.Clone(pkt)
			pkt[0], pkt[3], pkt[4], pkt[5] = 6, 7, 6, 0xC0
			if len(pkt) >= headerLen+2 {
				binary.LittleEndian.PutUint32(pkt[6:], testConsole)
				mac, err := crypto.IntegrityHMAC(integrityAlg, pkt[4:], testK1)
				if err != nil {
					t.Fatal(err)
				}
				pkt = append(pkt, mac[:authCode]...)
			}
			if m, _, ok := unseal(pkt, testConsole, 0, testK1, testK2); ok {
				_, _, _ = response(m, 0, 1, 7)
			}
		}
		_, _, _ = response(pkt, 0, 1, 7)
	})
}

// FuzzFRU: whatever a BMC says of itself, it ends, in printable text.
func FuzzFRU(f *testing.F) {
	f.Add([]byte{1, 0, 0, 1, 2, 0, 0, 0xfc, 1, 1, 0, 0, 0, 0, 0, 0xfe})
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		fixSums(b)
		out := parseFRU(b)
		for _, s := range []string{out.manufacturer, out.model, out.serial} {
			for _, c := range s {
				if c < 0x20 || c >= 0x7f {
					t.Errorf("%q holds %U", s, c)
				}
			}
		}
	})
}

// fixSums makes the checksums right, so that fuzzing gets past them.
func fixSums(b []byte) {
	if len(b) < 8 {
		return
	}
	b[0] = 1
	for _, off := range []int{int(b[3]) * 8, int(b[4]) * 8} {
		if off >= 8 && off+1 < len(b) {
			if n := int(b[off+1]) * 8; n > 2 && off+n <= len(b) {
				b[off+n-1] -= sum(b[off : off+n])
			}
		}
	}
	b[7] -= sum(b[:8])
}

func TestParseFRU(t *testing.T) {
	b := []byte{1, 0, 0, 0, 1, 0, 0, 0}
	area := []byte{1, 0, 0x19, 0xC4, 'A', 'C', 'M', 'E', 0x43, 0x12, 0x3A, 0x45, 0xC0, 0x02, 0xAB, 0xCD, 0x83, 0x64, 0xC9, 0xB2, 0xC1}
	for len(area)%8 != 7 {
		area = append(area, 0)
	}
	area = append(area, 0)
	b = append(b, area...)
	b[8+1] = byte(len(area) / 8)
	fixSums(b)
	got := parseFRU(b)
	// Model is BCD plus "12 3 45" (Ah is a space), part number empty, version binary, serial 6-bit "DELL".
	if got.manufacturer != "ACME" || got.model != "123 45" || got.serial != "DELL" {
		t.Errorf("%+v", got)
	}
	b[len(b)-1]++
	if got := parseFRU(b); got != (fru{}) {
		t.Errorf("damaged area read as %+v", got)
	}
}

func TestUUIDOf(t *testing.T) {
	want := "36ed9eb5-1d2f-4b06-9f17-5a0bd7b2a6c1"
	smbios := [16]byte{0xb5, 0x9e, 0xed, 0x36, 0x2f, 0x1d, 0x06, 0x4b, 0x9f, 0x17, 0x5a, 0x0b, 0xd7, 0xb2, 0xa6, 0xc1}
	plain := [16]byte{0x36, 0xed, 0x9e, 0xb5, 0x1d, 0x2f, 0x4b, 0x06, 0x9f, 0x17, 0x5a, 0x0b, 0xd7, 0xb2, 0xa6, 0xc1}
	reversed := [16]byte{0xc1, 0xa6, 0xb2, 0xd7, 0x0b, 0x5a, 0x17, 0x9f, 0x06, 0x4b, 0x2f, 0x1d, 0xb5, 0x9e, 0xed, 0x36}
	for name, g := range map[string][16]byte{"SMBIOS": smbios, "RFC 4122": plain, "reversed": reversed} {
		if got := uuidOf(g); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
