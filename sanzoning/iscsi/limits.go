package iscsi

import "strconv"

// limits are the negotiated values of a session (RFC 7143 section 13) that matter here.
type limits struct {
	peerSegment int // largest data segment that the peer takes, bytes
	maxBurst    int // largest solicited sequence, bytes
	firstBurst  int // largest unsolicited data, bytes
	immediate   bool
}

const (
	ownMaxBurst   = 256 << 10
	ownFirstBurst = 64 << 10
)

// defaults are the values in force for keys that nobody mentions (RFC 7143 section 13).
func defaults() limits {
	return limits{peerSegment: loginSegment, maxBurst: 262144, firstBurst: 65536, immediate: true}
}

func yesNo(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

// offer is what the initiator proposes.
func offer(immediate bool) keys {
	var k keys
	k.add("HeaderDigest", "None")
	k.add("DataDigest", "None")
	k.add("InitialR2T", "Yes")
	k.add("ImmediateData", yesNo(immediate))
	k.add("MaxRecvDataSegmentLength", strconv.Itoa(maxSegment))
	k.add("MaxBurstLength", strconv.Itoa(ownMaxBurst))
	k.add("FirstBurstLength", strconv.Itoa(ownFirstBurst))
	k.add("MaxOutstandingR2T", "1")
	k.add("MaxConnections", "1")
	k.add("ErrorRecoveryLevel", "0")
	k.add("DefaultTime2Wait", "2")
	k.add("DefaultTime2Retain", "0")
	return k
}

// accept takes over what the target answered to offer, and returns answers to keys that the target
// proposes by itself.
func (l *limits) accept(k keys) (keys, error) {
	var out keys
	for _, kv := range k {
		var err error
		switch kv.name {
		case "HeaderDigest", "DataDigest":
			if kv.value != "None" {
				err = malformed("%s=%.20q was not offered", kv.name, kv.value)
			}
		case "ImmediateData":
			l.immediate = kv.value == "Yes"
		case "InitialR2T":
			if kv.value != "Yes" {
				err = malformed("InitialR2T=%.20q, but we asked for Yes", kv.value)
			}
		case "MaxRecvDataSegmentLength":
			l.peerSegment, err = number(kv.name, kv.value, 512, 1<<24-1)
		case "MaxBurstLength":
			l.maxBurst, err = number(kv.name, kv.value, 512, 1<<24-1)
		case "FirstBurstLength":
			l.firstBurst, err = number(kv.name, kv.value, 512, 1<<24-1)
		case "MaxOutstandingR2T", "MaxConnections", "ErrorRecoveryLevel", "DefaultTime2Wait", "DefaultTime2Retain",
			"DataPDUInOrder", "DataSequenceInOrder", "TargetPortalGroupTag", "TargetAlias", "TargetAddress", "AuthMethod":
		default:
			if kv.value != "NotUnderstood" && kv.value != "Reject" && kv.value != "Irrelevant" {
				out.add(kv.name, "NotUnderstood")
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// settle is the target's side: it answers an initiator's proposals and takes over the results. Keys
// that declare something (names, segment length) have no answer.
func (l *limits) settle(k keys) (keys, error) {
	var out keys
	smaller := func(name, value string, low, high, own int) (int, error) {
		n, err := number(name, value, low, high)
		n = min(n, own)
		out.add(name, strconv.Itoa(n))
		return n, err
	}
	for _, kv := range k {
		var err error
		switch kv.name {
		case "InitiatorName", "InitiatorAlias", "SessionType", "TargetName", "AuthMethod", "TargetAlias",
			"CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C":
		case "HeaderDigest", "DataDigest":
			if offers(kv.value, "None") {
				out.add(kv.name, "None")
			} else {
				out.add(kv.name, "Reject")
			}
		case "InitialR2T", "DataPDUInOrder", "DataSequenceInOrder":
			out.add(kv.name, "Yes")
		case "ImmediateData":
			l.immediate = kv.value == "Yes"
			out.add(kv.name, yesNo(l.immediate))
		case "IFMarker", "OFMarker":
			out.add(kv.name, "No")
		case "MaxRecvDataSegmentLength":
			l.peerSegment, err = number(kv.name, kv.value, 512, 1<<24-1)
		case "MaxBurstLength":
			l.maxBurst, err = smaller(kv.name, kv.value, 512, 1<<24-1, ownMaxBurst)
		case "FirstBurstLength":
			l.firstBurst, err = smaller(kv.name, kv.value, 512, 1<<24-1, ownFirstBurst)
		case "MaxOutstandingR2T", "MaxConnections":
			_, err = smaller(kv.name, kv.value, 1, 65535, 1)
		case "ErrorRecoveryLevel":
			_, err = smaller(kv.name, kv.value, 0, 2, 0)
		case "DefaultTime2Retain":
			_, err = smaller(kv.name, kv.value, 0, 3600, 0)
		case "DefaultTime2Wait":
			_, err = number(kv.name, kv.value, 0, 3600)
			out.add(kv.name, kv.value)
		default:
			out.add(kv.name, "NotUnderstood")
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
